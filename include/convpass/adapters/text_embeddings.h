#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>
#include <vector>

namespace convpass {

/// What the texts of the classes are in the joint space of images and texts of a model such as
/// CLIP. scripts/clip_text_head.py writes such files.
struct TextEmbeddings {
  std::vector<std::string> classes;  ///< 0, 1, ... where the file has no names
  bool named = false;                ///< whether the file has names
  at::Tensor embeddings;             ///< [K, P] float32, rows of length one
  at::Tensor projection;             ///< [P, D] float32, of image features; undefined: P = D
  at::Tensor scale;                  ///< [] float32, of the cosines: CLIP's exp(logit_scale)
};

/// Reads the tensors `embeddings`, `scale` and, if it is there, `projection` of a file of any
/// format of load_tensors, and the names from the metadata `classes`, a JSON list, which only
/// safetensors have. Rows are brought to length one. Errors: FileError (a tensor that is missing or
/// of another shape or type, values that are not finite, a row of zeros, names that are not one a
/// row, or one twice).
TextEmbeddings load_text_embeddings(const std::filesystem::path& file);

}  // namespace convpass
