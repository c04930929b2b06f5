#pragma once

#include <cstdio>
#include <string>
#include <string_view>

namespace convpass {

/// Text from a file made fit for a one-line message: control characters escaped, long text
/// cut. Non-ASCII bytes pass as they are (names are UTF-8).
inline std::string printable(std::string_view text) {
  constexpr size_t kLongest = 120;
  std::string out;
  for (unsigned char c : text.substr(0, kLongest)) {
    if (c < 0x20 || c == 0x7f) {
      char escaped[5];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", c);
      out += escaped;
    } else {
      out += static_cast<char>(c);
    }
  }
  if (text.size() > kLongest) out += "...";
  return out;
}

/// The same in single quotes.
inline std::string in_quotes(std::string_view text) { return "'" + printable(text) + "'"; }

}  // namespace convpass
