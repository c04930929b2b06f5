# convpass: make demo and make test are the two commands of the README; each does what it needs of the
# others and is quick when there is nothing to do.
#
#   LIBTORCH=/path   use this LibTorch folder instead of the wheel in .venv
#   JOBS=N           compile jobs (default: one per core)
#   PLAN=full        what make bench measures: a plan of bench/adapters.json (default: quick)

BUILD ?= build
JOBS ?= $(shell nproc)
PLAN ?= quick
export LIBTORCH

.PHONY: help setup build demo demo-distill demo-usi demo-adapters test bench bench-guard format clean
help:
	@sed -n 's/^## //p' Makefile

## make setup   system packages (apt) and LibTorch in .venv
setup:
	@scripts/setup.sh

## make build   the library and the `convpass` command in build/
build: setup
	@scripts/build.sh $(BUILD) $(JOBS)

## make test    everything in the test suite, and a project that uses the installed library
test: build
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS) --no-tests=error
	@tests/package/run.sh $(BUILD)

## make demo    a real ViT-S/14 fine-tuned on Fashion-MNIST: linear probe and Convpass, as a table
demo: build
	@scripts/demo_data.sh
	@scripts/demo.sh $(BUILD)/convpass

## make demo-distill   a small BiT learns from the demo's ViT without labels: a table and a picture
demo-distill: demo
	@scripts/demo_distill.sh $(BUILD)/convpass

## make demo-usi   the whole USI scheme in small: a ResNet from scratch, as TorchScript, learns from the demo's ViT
demo-usi: demo
	@scripts/demo_usi.sh $(BUILD)/convpass

## make demo-adapters   every adapter on the demo's task: accuracy against throughput, as a table and a picture
demo-adapters: build
	@scripts/demo_data.sh
	@python3 scripts/demo_adapters.py $(BUILD)/convpass runs/adapters
	@python3 bench/matrix.py --binary $(BUILD)/convpass --plan demo --json runs/adapters/bench.json
	@python3 scripts/adapter_plot.py runs/adapters/accuracy.svg runs/adapters/bench.json runs/adapters

## make bench   the adapters side by side (about ten minutes; PLAN=full: hours), then the parts; docs/benchmark.md
bench: build
	@python3 bench/matrix.py --binary $(BUILD)/convpass --plan $(PLAN) --json $(BUILD)/bench.json
	@$(BUILD)/bench/convpass_bench

## make bench-guard   whether a ratio of bench/baseline.json has worsened
bench-guard: build
	@python3 bench/guard.py --binary $(BUILD)/convpass

## make format  clang-format over all sources
format:
	@git ls-files '*.cpp' '*.h' | xargs clang-format -i

clean:
	@rm -rf $(BUILD)
