#include "convpass/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "convpass/core/fields.h"

namespace convpass {

void fields(FieldVisitor& visitor, ScheduleConfig& config) {
  visitor.choice("type", config.type, {"cosine", "constant", "steps"}, "shape after the warm-up");
  visitor.choice("unit", config.unit, {"step", "epoch"},
                 "unit of all durations here, and how often the rate changes");
  visitor.field("warmup", config.warmup, "length of the linear warm-up, in units", at_least(0));
  visitor.field("warmup_lr", config.warmup_lr, "rate at the start of the warm-up", at_least(0));
  visitor.field("min_lr", config.min_lr, "cosine: rate at the end", at_least(0));
  visitor.field("milestones", config.milestones,
                "steps: the rate falls at each of these, in units (torch's MultiStepLR)",
                at_least(0));
  visitor.field("decay", config.decay, "steps: factor at each milestone", between(0, 1));
  visitor.field("total", config.total,
                "cosine: where it ends, warm-up included, in units; 0 = the run less the cool-down",
                at_least(0));
  visitor.field("cooldown", config.cooldown, "cosine: units at min_lr at the end of the run",
                at_least(0));
  visitor.field(
      "warmup_prefix", config.warmup_prefix,
      "true: the cosine starts after the warm-up; false: its start is hidden under it (timm, "
      "Convpass)");
  visitor.field("off_by_one", config.off_by_one,
                "the rate of one unit earlier, as the official Convpass loop has it");
}

double learning_rate(const ScheduleConfig& config, double base, int64_t step,
                     int64_t steps_per_epoch, int64_t total_steps) {
  const bool by_epoch = config.unit == ScheduleUnit::epoch;
  const int64_t units = by_epoch ? step / steps_per_epoch : step;
  const double t = static_cast<double>(std::max<int64_t>(0, units - (config.off_by_one ? 1 : 0)));
  // The operations stand in timm's order, so that the rates are its own to the last bit.
  if (t < config.warmup) return config.warmup_lr + t * ((base - config.warmup_lr) / config.warmup);
  switch (config.type) {
    case ScheduleType::constant:
      return base;
    case ScheduleType::steps: {
      const auto passed = std::count_if(config.milestones.begin(), config.milestones.end(),
                                        [&](double milestone) { return milestone <= t; });
      return base * std::pow(config.decay, static_cast<double>(passed));
    }
    case ScheduleType::cosine: {
      const double run =
          by_epoch ? static_cast<double>(total_steps) / static_cast<double>(steps_per_epoch)
                   : static_cast<double>(total_steps);
      const double total = config.total > 0 ? config.total : run - config.cooldown;
      const double start = config.warmup_prefix ? config.warmup : 0.0;
      if (t >= total) return config.min_lr;
      const double angle = std::numbers::pi * (t - start) / (total - start);
      return config.min_lr + 0.5 * (base - config.min_lr) * (1 + std::cos(angle));
    }
  }
  return base;
}

}  // namespace convpass
