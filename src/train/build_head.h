#pragma once

#include "convpass/train/build.h"

namespace convpass {

/// The head that the recipe says, with fresh weights drawn from `seed` or from the embeddings that
/// it names; where there is an adapter file, a head of the shape of the file's. Errors: FileError,
/// RecipeError.
Head build_head(const Recipe& recipe, const AdapterFile* known, const Backbone& backbone,
                int64_t classes, uint64_t seed);

/// Why a network with the classes `theirs` does not answer for `wanted`, which are `whose`: another
/// number of them, or a name that is another. "" where nothing is wrong, or where one of the two
/// has no names (are_counted): a data set may number what the network names.
std::string class_difference(const std::vector<std::string>& theirs,
                             const std::vector<std::string>& wanted, const std::string& whose);
/// Errors: FileError where a cosine head's embeddings are of other classes than `train`, which
/// takes their names where it only counts its own.
void check_class_texts(const Recipe& recipe, Dataset& train);

}  // namespace convpass
