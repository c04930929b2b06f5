# convpass: make demo and make test are the two commands of the README; each does what it needs of the
# others and is quick when there is nothing to do.
#
#   LIBTORCH=/path   use this LibTorch folder instead of the wheel in .venv
#   JOBS=N           compile jobs (default: one per core)

BUILD ?= build
JOBS ?= $(shell nproc)
export LIBTORCH

.PHONY: help setup build demo demo-distill demo-usi test bench format clean
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

## make bench   Google Benchmark of the parts; bench/peers/ holds the comparison with PyTorch
bench: build
	@$(BUILD)/bench/convpass_bench

## make format  clang-format over all sources
format:
	@git ls-files '*.cpp' '*.h' | xargs clang-format -i

clean:
	@rm -rf $(BUILD)
