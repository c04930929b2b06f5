#pragma once

#include <cstdint>
#include <vector>

namespace convpass {

class FieldVisitor;

enum class ScheduleType { cosine, constant, steps };
enum class ScheduleUnit { step, epoch };

struct ScheduleConfig {
  ScheduleType type = ScheduleType::cosine;
  ScheduleUnit unit =
      ScheduleUnit::step;  ///< of every duration below, and how often the rate changes
  double warmup = 0;
  double warmup_lr = 0;
  double min_lr = 0;
  std::vector<double> milestones{};  ///< steps: the rate is multiplied by `decay` at each
  double decay = 0.1;
  double total = 0;     ///< length of the decay including warm-up; 0 = the run without cool-down
  double cooldown = 0;  ///< at min_lr, at the end
  bool warmup_prefix =
      true;  ///< the cosine starts after the warm-up; false: hidden under it (timm's default)
  bool off_by_one = false;  ///< the official Convpass loop: one unit late
};
void fields(FieldVisitor& visitor, ScheduleConfig& config);

/// The learning rate of step `step` (0-based). Pure.
double learning_rate(const ScheduleConfig& config, double base, int64_t step,
                     int64_t steps_per_epoch, int64_t total_steps);

}  // namespace convpass
