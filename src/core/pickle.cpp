#include "src/core/pickle.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>

#include "src/core/printable.h"

namespace convpass {
namespace {

using Kind = PickleValue::Kind;

// A checkpoint has some thirty values a tensor; this bounds the memory that a hostile file can ask
// for.
constexpr size_t kMostValues = 4'000'000;

enum Op : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersistent = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kDict = 'd',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kList = 'l',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyList = ']',
  kEmptyDict = '}',
  kEmptyTuple = ')',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kNewObjEx = 0x92,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
  kByteArray8 = 0x96,
};

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("pickle: " + what); }

}  // namespace

/// Python's pickle machine (a stack, marks and a memo) with the calls left out.
class PickleMachine {
 public:
  explicit PickleMachine(std::span<const uint8_t> bytes) : left_(bytes) {}

  Pickle run() {
    while (true) {
      const uint8_t op = take(1)[0];
      if (op == kStop) break;
      if (!constant(op) && !container(op) && !object(op) && !memo(op)) {
        fail("operation " + std::to_string(op) + " is not read");
      }
    }
    pickle_.root_ = pop();
    return std::move(pickle_);
  }

 private:
  std::span<const uint8_t> take(uint64_t size) {
    if (size > left_.size()) {
      fail("is cut short: wanted " + std::to_string(size) + " bytes, got " +
           std::to_string(left_.size()));
    }
    auto taken = left_.first(size);
    left_ = left_.subspan(size);
    return taken;
  }

  uint64_t number(size_t width) {
    uint64_t value = 0;
    auto bytes = take(width);
    for (size_t i = 0; i < width; ++i) value |= uint64_t{bytes[i]} << (8 * i);
    return value;
  }

  std::string counted_text(size_t width) {
    auto bytes = take(number(width));
    return {bytes.begin(), bytes.end()};
  }

  std::string line() {
    auto end = std::find(left_.begin(), left_.end(), uint8_t{'\n'});
    if (end == left_.end()) fail("is cut short in a name");
    auto bytes = take(static_cast<uint64_t>(end - left_.begin()));
    take(1);
    return {bytes.begin(), bytes.end()};
  }

  PickleValue& make(Kind kind) {
    if (pickle_.values_.size() >= kMostValues) {
      fail("has more than " + std::to_string(kMostValues) + " values");
    }
    auto& value = pickle_.values_.emplace_back();
    value.kind = kind;
    return value;
  }

  void push(PickleValue& value) { stack_.push_back(&value); }

  void push_text(Kind kind, std::string text) {
    auto& value = make(kind);
    value.text = std::move(text);
    push(value);
  }

  void push_integer(int64_t integer) {
    auto& value = make(Kind::integer);
    value.integer = integer;
    push(value);
  }

  /// A little-endian two's complement of any length; longer than 64 bits is nothing we need.
  void push_long(uint64_t width) {
    auto bytes = take(width);
    if (width > 8) return push(make(Kind::other));
    uint64_t value = width > 0 && (bytes[width - 1] & 0x80) != 0 ? ~uint64_t{0} : 0;
    for (uint64_t i = width; i-- > 0;) value = value << 8 | bytes[i];
    push_integer(static_cast<int64_t>(value));
  }

  size_t bottom() const { return marks_.empty() ? 0 : marks_.back(); }

  PickleValue* pop() {
    if (stack_.size() <= bottom()) fail("takes from an empty stack");
    auto* value = stack_.back();
    stack_.pop_back();
    return value;
  }

  PickleValue& top() {
    if (stack_.size() <= bottom()) fail("takes from an empty stack");
    return *stack_.back();
  }

  std::vector<const PickleValue*> pop_to_mark() {
    if (marks_.empty()) fail("lacks a mark");
    std::vector<const PickleValue*> values(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()),
                                           stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return values;
  }

  void push_tuple(size_t size) {
    auto& value = make(Kind::sequence);
    value.items.resize(size);
    for (size_t i = size; i-- > 0;) value.items[i] = pop();
    push(value);
  }

  void push_sequence(Kind kind, std::vector<const PickleValue*> items) {
    auto& value = make(kind);
    value.items = std::move(items);
    push(value);
  }

  /// `items` alternate between keys and values. A call may be of a kind of dictionary
  /// (OrderedDict).
  void set_items(const std::vector<const PickleValue*>& items) {
    auto& target = top();
    if (!target.is(Kind::dict) && !target.is(Kind::call)) fail("sets an item of what has none");
    if (items.size() % 2 != 0) fail("has a key without a value");
    target.items.insert(target.items.end(), items.begin(), items.end());
  }

  /// What is appended to a call (a kind of list) is of no interest.
  void append(const std::vector<const PickleValue*>& items) {
    auto& target = top();
    if (target.is(Kind::call)) return;
    if (!target.is(Kind::sequence)) fail("appends to what is no list");
    target.items.insert(target.items.end(), items.begin(), items.end());
  }

  bool constant(uint8_t op) {
    switch (op) {
      case kNone:
      case kNewTrue:
      case kNewFalse:
        push(make(Kind::other));
        return true;
      case kBinFloat:
        take(8);
        push(make(Kind::other));
        return true;
      case kBinInt:
        push_integer(static_cast<int32_t>(number(4)));
        return true;
      case kBinInt1:
        push_integer(static_cast<int64_t>(number(1)));
        return true;
      case kBinInt2:
        push_integer(static_cast<int64_t>(number(2)));
        return true;
      case kLong1:
        push_long(number(1));
        return true;
      case kLong4:
        push_long(number(4));
        return true;
      case kShortBinString:
      case kShortBinUnicode:
        push_text(Kind::text, counted_text(1));
        return true;
      case kBinString:
      case kBinUnicode:
        push_text(Kind::text, counted_text(4));
        return true;
      case kBinUnicode8:
        push_text(Kind::text, counted_text(8));
        return true;
      case kShortBinBytes:
        take(number(1));
        push(make(Kind::other));
        return true;
      case kBinBytes:
        take(number(4));
        push(make(Kind::other));
        return true;
      case kBinBytes8:
      case kByteArray8:
        take(number(8));
        push(make(Kind::other));
        return true;
      default:
        return false;
    }
  }

  bool container(uint8_t op) {
    switch (op) {
      case kMark:
        marks_.push_back(stack_.size());
        return true;
      case kPop:
        if (!marks_.empty() && stack_.size() == marks_.back()) {
          marks_.pop_back();
        } else {
          pop();
        }
        return true;
      case kPopMark:
        pop_to_mark();
        return true;
      case kDup:
        push(top());
        return true;
      case kEmptyList:
      case kEmptyTuple:
      case kEmptySet:
        push(make(Kind::sequence));
        return true;
      case kEmptyDict:
        push(make(Kind::dict));
        return true;
      case kList:
      case kTuple:
      case kFrozenSet:
        push_sequence(Kind::sequence, pop_to_mark());
        return true;
      case kTuple1:
      case kTuple2:
      case kTuple3:
        push_tuple(op - kTuple1 + 1u);
        return true;
      case kDict: {
        auto items = pop_to_mark();
        push(make(Kind::dict));
        set_items(items);
        return true;
      }
      case kAppend:
        append({pop()});
        return true;
      case kAppends:
      case kAddItems:
        append(pop_to_mark());
        return true;
      case kSetItem: {
        const auto* value = pop();
        const auto* key = pop();
        set_items({key, value});
        return true;
      }
      case kSetItems:
        set_items(pop_to_mark());
        return true;
      default:
        return false;
    }
  }

  bool object(uint8_t op) {
    switch (op) {
      case kGlobal: {
        std::string module = line();
        push_text(Kind::global, module + "." + line());
        return true;
      }
      case kStackGlobal: {
        const auto* name = pop();
        const auto* module = pop();
        if (!name->is(Kind::text) || !module->is(Kind::text)) fail("names a global without text");
        // Six bytes can ask for a copy of a text of any length.
        constexpr size_t kLongest = 1024;
        if (name->text.size() + module->text.size() > kLongest)
          fail("names a global of more than " + std::to_string(kLongest) + " characters");
        push_text(Kind::global, module->text + "." + name->text);
        return true;
      }
      case kReduce:
      case kNewObj:
      case kNewObjEx: {
        if (op == kNewObjEx) pop();  // keyword arguments
        const auto* args = pop();
        const auto* function = pop();
        auto& value = make(Kind::call);
        value.args = args;
        value.function = function;
        push(value);
        return true;
      }
      case kBuild: {
        const auto* state = pop();
        top().state = state;
        return true;
      }
      case kBinPersistent: {
        const auto* id = pop();
        auto& value = make(Kind::persistent);
        value.args = id;
        push(value);
        return true;
      }
      default:
        return false;
    }
  }

  bool memo(uint8_t op) {
    switch (op) {
      case kProto: {
        const uint64_t protocol = number(1);
        if (protocol < 2 || protocol > 5) {
          fail("protocol " + std::to_string(protocol) + ", wanted 2 to 5");
        }
        return true;
      }
      case kFrame:
        if (number(8) > left_.size()) fail("is cut short in a frame");
        return true;
      case kBinPut:
        memo_[number(1)] = &top();
        return true;
      case kLongBinPut:
        memo_[number(4)] = &top();
        return true;
      case kMemoize:
        memo_[memo_.size()] = &top();
        return true;
      case kBinGet:
        recall(number(1));
        return true;
      case kLongBinGet:
        recall(number(4));
        return true;
      default:
        return false;
    }
  }

  void recall(uint64_t key) {
    auto found = memo_.find(key);
    if (found == memo_.end()) fail("recalls what it never remembered");
    push(*found->second);
  }

  std::span<const uint8_t> left_;
  Pickle pickle_;
  std::vector<PickleValue*> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint64_t, PickleValue*> memo_;
};

Pickle Pickle::parse(std::span<const uint8_t> bytes) { return PickleMachine(bytes).run(); }

const PickleValue* PickleValue::find(std::string_view key) const {
  for (size_t i = items.size(); i >= 2; i -= 2) {
    if (items[i - 2]->is(Kind::text) && items[i - 2]->text == key) return items[i - 1];
  }
  return nullptr;
}

}  // namespace convpass
