#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

/// BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): the biases train. All that the network has, as
/// "bias" does in the comparison of kmnp/vpt: patch embedding, norms, dense layers.
struct BitFitConfig {};
void fields(FieldVisitor& visitor, BitFitConfig& config);

/// Holds the biases themselves, under their timm names, and starts from the backbone's: a fresh one
/// changes nothing. Merges trivially.
std::unique_ptr<Adapter> make_bitfit(const BitFitConfig& config, const Backbone& backbone);

}  // namespace convpass
