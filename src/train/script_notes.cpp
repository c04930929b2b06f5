#include "src/train/script_notes.h"

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/core/file.h"
#include "convpass/core/json.h"

namespace convpass {

static void fields(FieldVisitor& visitor, ScriptNotes& notes) {
  visitor.field("classes", notes.classes, "names of the classes in the order of the logits");
  visitor.part("input", notes.input, "from a decoded image to the network's input");
}

std::optional<ScriptNotes> read_script_notes(const std::filesystem::path& script) {
  std::filesystem::path file = script;
  file.replace_extension(".json");
  if (!std::filesystem::exists(file)) return std::nullopt;
  const std::vector<uint8_t> text = read_file(file);
  ScriptNotes notes;
  read_json_fields(std::string(text.begin(), text.end()), notes, file);
  if (notes.input.size[0] == 0) throw FileError(file, "/input/size: missing, wanted pixels");
  if (notes.input.mean.empty() || notes.input.std.empty())
    throw FileError(file, "/input: mean or std is missing, wanted both");
  try {
    ImagePipeline(notes.input, AugmentConfig{});  // checks the numbers
  } catch (const Error& error) {
    throw FileError(file, error.what());
  }
  return notes;
}

}  // namespace convpass
