#include "src/train/made_from.h"

#include <algorithm>

namespace convpass {

std::string difference(const MadeFrom& got, const MadeFrom& wanted) {
  const MadeFrom changes = MadeFrom::diff(wanted, got);
  if (changes.empty()) return {};
  std::string name = changes[0]["path"];
  const MadeFrom::json_pointer pointer(name);
  auto text = [&](const MadeFrom& whole) -> std::string {
    constexpr size_t kLongest = 200;
    if (!whole.contains(pointer)) return "nothing";
    const std::string value =
        whole[pointer].dump(-1, ' ', /*ensure_ascii=*/true, MadeFrom::error_handler_t::replace);
    return value.size() <= kLongest ? value : value.substr(0, kLongest) + "...";
  };
  const std::string values = ": got " + text(got) + ", wanted " + text(wanted);
  name.erase(0, name.starts_with('/') ? 1 : 0);
  std::replace(name.begin(), name.end(), '/', '.');
  return name + values;
}

}  // namespace convpass
