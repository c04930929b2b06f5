#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

namespace convpass {

/// What a pickle describes, as data. Where Python would call something, there is a node that says
/// what would be called with what; nothing is imported, called or evaluated.
struct PickleValue {
  enum class Kind {
    integer,
    text,
    sequence,  ///< list, tuple or set: `items`
    dict,      ///< `items` alternates between keys and values
    global,    ///< `text` is module.name
    call,      ///< `function`(`args`); `items` as of a dict that was filled later; `state` or null
    persistent,  ///< stands for something outside the pickle: `args` identifies it
    other,       ///< a constant of no interest: None, bool, float, bytes, a long integer
  };
  Kind kind = Kind::other;
  int64_t integer = 0;
  std::string text;
  std::vector<const PickleValue*> items;
  const PickleValue* function = nullptr;
  const PickleValue* args = nullptr;
  const PickleValue* state = nullptr;

  bool is(Kind wanted) const { return kind == wanted; }
  bool is_global(std::string_view name) const { return kind == Kind::global && text == name; }
  /// The last value under that key of a dict or a filled call, or null.
  const PickleValue* find(std::string_view key) const;
};

/// Owns all values of one pickle. Values may refer to each other in cycles.
class Pickle {
 public:
  /// Reads protocols 2 to 5. Bounded by the length of `bytes`: no recursion, no preallocation.
  /// Errors: std::invalid_argument with what is wrong, fit for a one-line message.
  static Pickle parse(std::span<const uint8_t> bytes);

  const PickleValue& root() const { return *root_; }

 private:
  friend class PickleMachine;
  std::deque<PickleValue> values_;  // addresses stay
  const PickleValue* root_ = nullptr;
};

}  // namespace convpass
