#include "convpass/data/mixing.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"

namespace convpass {
namespace {

// Logarithm of a Gamma(shape, 1) number (Marsaglia & Tsang, 2000): with a shape of 0.1 the number
// itself often lies below the smallest double.
double sample_log_gamma(double shape, Rng& rng) {
  if (shape < 1.0) {
    const double boost = std::log(1.0 - rng.uniform()) / shape;
    return sample_log_gamma(shape + 1.0, rng) + boost;
  }
  const double d = shape - 1.0 / 3.0, c = 1.0 / std::sqrt(9.0 * d);
  for (;;) {
    const double x = rng.normal();
    const double v = std::pow(1.0 + c * x, 3);
    if (v <= 0) continue;
    const double u = 1.0 - rng.uniform();
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return std::log(d * v);
  }
}

struct Size {
  int64_t batch, height, width;
};

// One draw of timm: whether CutMix, lambda and the box.
MixRow draw_timm(const MixConfig& config, const Size& size, Rng& rng) {
  MixRow row;
  if (!rng.coin(config.probability)) return row;
  row.cutmix = config.cutmix > 0 && (config.mixup <= 0 || rng.coin(config.switch_probability));
  const double alpha = row.cutmix ? config.cutmix : config.mixup;
  row.lambda = sample_beta(alpha, alpha, rng);
  if (!row.cutmix) return row;
  const int64_t y = rng.below(size.height), x = rng.below(size.width);
  row.box = cutmix_box(size.height, size.width, row.lambda, {y, x});
  const auto area =
      static_cast<double>((row.box.bottom - row.box.top) * (row.box.right - row.box.left));
  row.lambda = 1.0 - area / static_cast<double>(size.height * size.width);
  return row;
}

MixDraw timm_rows(const MixConfig& config, const Size& size, Rng rng) {
  if (size.batch % 2 != 0) {
    throw Error("augment.mix_style \"timm\" pairs the images of a batch: got " +
                std::to_string(size.batch) + ", wanted an even number");
  }
  MixDraw draw(static_cast<size_t>(size.batch));
  for (size_t i = 0; i < draw.size(); ++i) {
    const size_t partner = draw.size() - 1 - i;
    const bool drawn_before = config.mode == MixMode::batch  ? i > 0
                              : config.mode == MixMode::pair ? partner < i
                                                             : false;
    draw[i] = drawn_before ? draw[config.mode == MixMode::pair ? partner : 0]
                           : draw_timm(config, size, rng);
    draw[i].partner = static_cast<int64_t>(partner);
  }
  return draw;
}

std::vector<int64_t> permutation(int64_t size, Rng rng) {
  std::vector<int64_t> order(static_cast<size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = size - 1; i > 0; --i) {
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(rng.below(i + 1))]);
  }
  return order;
}

at::Tensor partners(const MixDraw& draw, c10::Device device) {
  std::vector<int64_t> rows;
  for (const MixRow& row : draw) rows.push_back(row.partner);
  return at::tensor(rows, at::kLong).to(device);
}

// lambda x + (1 - lambda) partner with one lambda for each row.
at::Tensor blend(const at::Tensor& values, const std::vector<double>& lambdas,
                 const at::Tensor& partner) {
  std::vector<int64_t> shape(static_cast<size_t>(values.dim()), 1);
  shape[0] = values.size(0);
  auto column = [&](const std::vector<double>& weights) {
    return at::tensor(weights, at::kDouble)
        .to(values.scalar_type())
        .to(values.device())
        .view(shape);
  };
  std::vector<double> rest;
  for (double lambda : lambdas) rest.push_back(1.0 - lambda);
  return (values * column(lambdas)).addcmul_(values.index_select(0, partner), column(rest));
}

bool mixes(const MixDraw& draw) {
  return std::any_of(draw.begin(), draw.end(), [](const MixRow& row) { return row.lambda != 1; });
}

at::Tensor part(const at::Tensor& images, const MixBox& box) {
  return images.slice(-2, box.top, box.bottom).slice(-1, box.left, box.right);
}

void check_rows(const at::Tensor& values, const MixDraw& draw) {
  TORCH_CHECK(values.size(0) == static_cast<int64_t>(draw.size()), "mixing a batch of ",
              values.size(0), " with a draw for ", draw.size());
}

}  // namespace

void fields(FieldVisitor& visitor, MixConfig& config) {
  visitor.field("mixup", config.mixup, "alpha of mixup: lambda from Beta(alpha, alpha); 0 = off",
                between(0, 1000));
  visitor.field("cutmix", config.cutmix, "alpha of CutMix, style timm alone; 0 = off",
                between(0, 1000));
  visitor.choice("mix_style", config.style, {"timm", "funmatch", "bit"},
                 "who is mixed with whom: timm: the batch reversed; funmatch: the row before, with "
                 "max(lambda, 1 - lambda); bit: a random permutation");
  visitor.choice("mix_mode", config.mode, {"batch", "pair", "elem"},
                 "timm: one draw for the whole batch, for each pair or for each image");
  visitor.field("mix_probability", config.probability, "timm: of mixing a batch at all",
                between(0, 1));
  visitor.field("mix_switch", config.switch_probability,
                "timm: probability of CutMix where mixup is on too", between(0, 1));
}

double sample_beta(double a, double b, Rng& rng) {
  const double first = sample_log_gamma(a, rng), second = sample_log_gamma(b, rng);
  return 1.0 / (1.0 + std::exp(second - first));
}

MixBox cutmix_box(int64_t height, int64_t width, double lambda, std::array<int64_t, 2> centre) {
  const double ratio = std::sqrt(1.0 - lambda);
  auto half = [ratio](int64_t side) {
    return static_cast<int64_t>(static_cast<double>(side) * ratio) / 2;
  };
  const int64_t h = half(height), w = half(width);
  return {std::max<int64_t>(centre[0] - h, 0), std::max<int64_t>(centre[1] - w, 0),
          std::min(centre[0] + h, height), std::min(centre[1] + w, width)};
}

MixDraw draw_mix(const MixConfig& config, at::IntArrayRef shape, const MixKey& key) {
  TORCH_CHECK(shape.size() == 4, "mixing wants images [B, 3, H, W]");
  if (!config.on()) return {};
  const Size size{shape[0], shape[2], shape[3]};
  const auto step = static_cast<uint64_t>(key.step), micro = static_cast<uint64_t>(key.micro);
  if (config.style == MixStyle::timm) {
    return timm_rows(config, size, Rng(key.seed, step, micro, Purpose::mix));
  }
  Rng rng(key.seed, step, 0, Purpose::mix);
  double lambda = sample_beta(config.mixup, config.mixup, rng);
  const bool funmatch = config.style == MixStyle::funmatch;
  if (funmatch) lambda = std::max(lambda, 1.0 - lambda);
  std::vector<int64_t> partner;
  if (funmatch) {
    for (int64_t i = 0; i < size.batch; ++i) partner.push_back((i + size.batch - 1) % size.batch);
  } else {
    partner = permutation(size.batch, Rng(key.seed, step, micro + 1, Purpose::mix));
  }
  MixDraw draw;
  for (int64_t row : partner) draw.push_back({.partner = row, .lambda = lambda});
  return draw;
}

at::Tensor mix_images(const at::Tensor& images, const MixDraw& draw) {
  if (!mixes(draw)) return images;
  check_rows(images, draw);
  const at::Tensor partner = partners(draw, images.device());
  std::vector<double> lambdas;
  bool blends = false, same_box = true;
  for (const MixRow& row : draw) {
    lambdas.push_back(row.cutmix ? 1.0 : row.lambda);
    blends = blends || lambdas.back() != 1.0;
    same_box = same_box && row.cutmix && row.box == draw.front().box;
  }
  at::Tensor mixed = blends ? blend(images, lambdas, partner) : images.clone();
  if (same_box) {
    part(mixed, draw.front().box).copy_(part(images, draw.front().box).index_select(0, partner));
    return mixed;
  }
  for (size_t i = 0; i < draw.size(); ++i) {
    if (!draw[i].cutmix || draw[i].lambda == 1) continue;
    part(mixed[static_cast<int64_t>(i)], draw[i].box)
        .copy_(part(images[draw[i].partner], draw[i].box));
  }
  return mixed;
}

at::Tensor mix_targets(const at::Tensor& targets, const MixDraw& draw) {
  if (!mixes(draw)) return targets;
  check_rows(targets, draw);
  std::vector<double> lambdas;
  for (const MixRow& row : draw) lambdas.push_back(row.lambda);
  return blend(targets, lambdas, partners(draw, targets.device()));
}

at::Tensor soft_targets(const at::Tensor& labels, int64_t classes, double smoothing) {
  const double off = smoothing / static_cast<double>(classes);
  at::Tensor targets = at::full({labels.size(0), classes}, off, labels.options().dtype(at::kFloat));
  return targets.scatter_(1, labels.unsqueeze(1), 1.0 - smoothing + off);
}

}  // namespace convpass
