#include "src/core/npy.h"

#include <optional>
#include <stdexcept>

#include "src/core/printable.h"

namespace convpass {
namespace {

constexpr size_t kMostDimensions = 64;

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument(what); }

/// Recursive descent over `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  NpyHeader parse() {
    NpyHeader header{};
    std::optional<std::string> descr;
    bool has_order = false, has_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr" && !descr) {
        descr = string();
      } else if (key == "fortran_order" && !has_order) {
        header.fortran_order = boolean();
        has_order = true;
      } else if (key == "shape" && !has_shape) {
        header.shape = tuple();
        has_shape = true;
      } else {
        fail("header has " + in_quotes(key) + ", wanted descr, fortran_order and shape once each");
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (!text_.empty()) fail("header has text after its dictionary");
    if (!descr || !has_order || !has_shape) fail("header lacks descr, fortran_order or shape");
    set_type(*descr, header);
    return header;
  }

 private:
  static void set_type(const std::string& descr, NpyHeader& header) {
    struct Known {
      std::string_view code;
      c10::ScalarType type;
    };
    static constexpr Known kKnown[] = {
        {"f4", c10::kFloat},    {"f2", c10::kHalf},   {"f8", c10::kDouble}, {"i8", c10::kLong},
        {"i4", c10::kInt},      {"i2", c10::kShort},  {"i1", c10::kChar},   {"u8", c10::kUInt64},
        {"u4", c10::kUInt32},   {"u2", c10::kUInt16}, {"u1", c10::kByte},   {"b1", c10::kBool},
        {"V2", c10::kBFloat16},  // what NumPy, which lacks the type, makes of bfloat16
    };
    if (descr == "|O") fail("is an array of Python objects, which is not read");
    const std::string_view text = descr;
    if (text.size() == 3 && (text[0] == '<' || text[0] == '>' || text[0] == '|')) {
      for (const Known& known : kKnown) {
        const bool one_byte = known.code[1] == '1' || known.code[0] == 'V';
        if (text.substr(1) == known.code && (text[0] != '|' || one_byte)) {
          header.type = known.type;
          header.big_endian = text[0] == '>';
          return;
        }
      }
    }
    fail("type " + in_quotes(descr) + " is not read, wanted a float, integer or bool type");
  }

  void skip_space() {
    const auto first = text_.find_first_not_of(" \t\r\n");
    text_.remove_prefix(first == std::string_view::npos ? text_.size() : first);
  }

  bool accept(char c) {
    skip_space();
    if (!text_.starts_with(c)) return false;
    text_.remove_prefix(1);
    return true;
  }

  void expect(char c) {
    if (!accept(c)) {
      fail(std::string("header: wanted '") + c + "' at " + in_quotes(text_.substr(0, 16)));
    }
  }

  bool accept_word(std::string_view word) {
    skip_space();
    if (!text_.starts_with(word)) return false;
    text_.remove_prefix(word.size());
    return true;
  }

  std::string string() {
    skip_space();
    if (text_.starts_with('[')) fail("is a structured array, which is not read");
    if (text_.empty() || (text_[0] != '\'' && text_[0] != '"')) {
      fail("header: wanted a string at " + in_quotes(text_.substr(0, 16)));
    }
    const auto end = text_.find(text_[0], 1);
    if (end == std::string_view::npos) fail("header: a string does not end");
    std::string value(text_.substr(1, end - 1));
    if (value.find('\\') != std::string::npos) fail("header: a string has an escape");
    text_.remove_prefix(end + 1);
    return value;
  }

  bool boolean() {
    if (accept_word("True")) return true;
    if (accept_word("False")) return false;
    fail("header: fortran_order is neither True nor False");
  }

  std::vector<int64_t> tuple() {
    std::vector<int64_t> shape;
    expect('(');
    while (!accept(')')) {
      shape.push_back(number());
      if (shape.size() > kMostDimensions) fail("has more than 64 dimensions");
      if (accept(',')) continue;
      expect(')');
      // (3) is a number in Python, only (3,) is a tuple.
      if (shape.size() == 1) fail("header: shape is not a tuple");
      break;
    }
    return shape;
  }

  int64_t number() {
    skip_space();
    int64_t value = 0;
    size_t digits = 0;
    for (; digits < text_.size() && text_[digits] >= '0' && text_[digits] <= '9'; ++digits) {
      if (__builtin_mul_overflow(value, int64_t{10}, &value) ||
          __builtin_add_overflow(value, int64_t{text_[digits] - '0'}, &value)) {
        fail("has a dimension that is too large");
      }
    }
    if (digits == 0) {
      fail("header: wanted a whole number at " + in_quotes(text_.substr(0, 16)));
    }
    text_.remove_prefix(digits);
    accept_word("L");  // as Python 2 wrote long integers
    return value;
  }

  std::string_view text_;
};

}  // namespace

NpyHeader parse_npy_header(std::string_view text) { return HeaderParser(text).parse(); }

}  // namespace convpass
