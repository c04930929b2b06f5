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

/// Any text as one line for a terminal: control characters and what is not UTF-8 escaped.
inline std::string one_line(std::string_view text) {
  // Length of the UTF-8 sequence at `i`, 0 where there is none.
  auto sequence = [&](size_t i) -> size_t {
    auto at = [&](size_t j) { return static_cast<unsigned char>(text[j]); };
    const unsigned char c = at(i);
    const size_t length = c < 0x80                ? 1
                          : c >= 0xc2 && c < 0xe0 ? 2
                          : c >= 0xe0 && c < 0xf0 ? 3
                          : c >= 0xf0 && c < 0xf5 ? 4
                                                  : 0;
    if (length == 0 || i + length > text.size()) return 0;
    for (size_t j = 1; j < length; ++j)
      if ((at(i + j) & 0xc0) != 0x80) return 0;
    // Overlong forms, surrogates, beyond U+10FFFF, and the control characters U+0080 to U+009F.
    if ((c == 0xe0 && at(i + 1) < 0xa0) || (c == 0xed && at(i + 1) >= 0xa0) ||
        (c == 0xf0 && at(i + 1) < 0x90) || (c == 0xf4 && at(i + 1) >= 0x90) ||
        (c == 0xc2 && at(i + 1) < 0xa0)) {
      return 0;
    }
    return length;
  };
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const size_t length = c < 0x20 || c == 0x7f ? 0 : sequence(i);
    if (length == 0) {
      char escaped[5];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", c);
      out += escaped;
    }
    out += text.substr(i, length);
    i += length == 0 ? 1 : length;
  }
  return out;
}

/// `printable` in single quotes.
inline std::string in_quotes(std::string_view text) { return "'" + printable(text) + "'"; }

}  // namespace convpass
