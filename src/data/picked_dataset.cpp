#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "convpass/core/error.h"
#include "src/data/dataset_kinds.h"

namespace convpass {
namespace {

/// Samples of other sets, whose images stay where they are.
class PickedDataset : public Dataset {
 public:
  explicit PickedDataset(std::vector<std::string> classes) { classes_ = std::move(classes); }

  void add(std::shared_ptr<const Dataset> from, const std::vector<int64_t>& indices) {
    for (int64_t index : indices) {
      labels_.push_back(from->label(index));
      samples_.push_back({from.get(), index});
    }
    sets_.push_back(std::move(from));
  }

  std::string name(int64_t index) const override {
    const auto& [set, position] = samples_[static_cast<size_t>(index)];
    return set->name(position);
  }
  Image image(int64_t index) const override {
    const auto& [set, position] = samples_[static_cast<size_t>(index)];
    return set->image(position);
  }
  bool in_memory() const override {
    return std::all_of(sets_.begin(), sets_.end(),
                       [](const auto& set) { return set->in_memory(); });
  }
  void keep(const std::vector<int64_t>& indices) override {
    std::vector<std::pair<const Dataset*, int64_t>> kept;
    std::vector<int64_t> labels;
    for (int64_t index : indices) {
      kept.push_back(samples_[static_cast<size_t>(index)]);
      labels.push_back(label(index));
    }
    samples_ = std::move(kept);
    labels_ = std::move(labels);
  }

 private:
  std::vector<std::shared_ptr<const Dataset>> sets_;
  std::vector<std::pair<const Dataset*, int64_t>> samples_;  // of a set, and its place there
};

std::vector<int64_t> all_of(const Dataset& dataset) {
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < dataset.size(); ++i) indices.push_back(i);
  return indices;
}

}  // namespace

std::unique_ptr<Dataset> open_source(const HeldOutSource&, const DecodeOptions&, int64_t) {
  TORCH_CHECK(false, "a part of data.train cannot be opened by itself");
}

HeldOut hold_out(std::shared_ptr<const Dataset> whole, const HeldOutSource& source, int64_t seed) {
  require_labels(*whole, "data.train", "to hold out a part of each class");
  std::vector<int64_t> held;
  const std::vector<std::vector<int64_t>> members = members_by_class(*whole);
  for (size_t label = 0; label < members.size(); ++label) {
    const auto images = static_cast<int64_t>(members[label].size());
    if (images < 2) {
      throw Error("data.val: class " + whole->classes()[label] + " has " + std::to_string(images) +
                  " images in data.train, wanted at least 2 to hold one out");
    }
    const int64_t count = std::clamp<int64_t>(
        std::llround(source.fraction * static_cast<double>(images)), 1, images - 1);
    const std::vector<int64_t> chosen = choose(members[label], count, seed, Purpose::hold_out);
    held.insert(held.end(), chosen.begin(), chosen.end());
  }
  std::sort(held.begin(), held.end());
  std::vector<int64_t> rest;
  const std::vector<int64_t> all = all_of(*whole);
  std::set_difference(all.begin(), all.end(), held.begin(), held.end(), std::back_inserter(rest));

  auto part = std::make_unique<PickedDataset>(whole->classes());
  part->add(whole, held);
  auto others = std::make_unique<PickedDataset>(whole->classes());
  others->add(std::move(whole), rest);
  return {std::move(others), std::move(part)};
}

std::unique_ptr<Dataset> joined(std::shared_ptr<const Dataset> first,
                                std::shared_ptr<const Dataset> second) {
  auto both = std::make_unique<PickedDataset>(first->classes());
  for (auto& set : {std::move(first), std::move(second)}) both->add(set, all_of(*set));
  return both;
}

}  // namespace convpass
