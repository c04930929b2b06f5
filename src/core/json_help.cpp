#include <algorithm>
#include <array>

#include "convpass/core/error.h"
#include "src/core/json_document.h"

namespace convpass {
namespace {

constexpr size_t kLineWidth = 118;

/// One line of a table, or the heading of a variant's alternative (type, default and meaning
/// empty).
struct Row {
  std::string parent{};  ///< part that the key stands in
  std::string key{}, type{}, value{}, meaning{};
  bool is_part = false;
  bool is_heading = false;
  bool in_choice = false;
};

class HelpCollector final : public FieldVisitor {
 public:
  std::vector<Row> rows;
  std::vector<std::string> parts{""};

  void field(std::string_view key, bool& value, std::string_view help) override {
    add(key, "true or false", value ? "true" : "false", help);
  }
  void field(std::string_view key, int64_t& value, std::string_view help, Bounds bounds) override {
    add(key, "whole number", std::to_string(value), help, bounds);
  }
  void field(std::string_view key, double& value, std::string_view help, Bounds bounds) override {
    add(key, "number", number_text(value), help, bounds);
  }
  void field(std::string_view key, std::string& value, std::string_view help) override {
    add(key, "string", json_quote(value), help);
  }
  void field(std::string_view key, std::filesystem::path& value, std::string_view help) override {
    add(key, "path", json_quote(value.string()), help);
  }
  void field(std::string_view key, std::vector<double>& value, std::string_view help,
             Bounds bounds) override {
    add(key, "list of numbers", pretty_json(value, 0), help, bounds);
  }
  void field(std::string_view key, std::vector<int64_t>& value, std::string_view help,
             Bounds bounds) override {
    add(key, "list of whole numbers", pretty_json(value, 0), help, bounds);
  }
  void field(std::string_view key, std::vector<std::string>& value,
             std::string_view help) override {
    add(key, "list of strings", pretty_json(value, 0), help);
  }
  void list_or_word(std::string_view key, std::vector<int64_t>& value, std::string_view word,
                    std::string_view help, Bounds bounds) override {
    add(key, json_quote(word) + " or list of whole numbers",
        value.empty() ? json_quote(word) : pretty_json(value, 0), help, bounds);
  }

 protected:
  bool reads() const override { return false; }
  void choice_index(std::string_view key, int& index, Names names, std::string_view help) override {
    std::string type;
    for (std::string_view name : names) type += (type.empty() ? "" : " | ") + json_quote(name);
    add(key, type, json_quote(*(names.begin() + index)), help);
  }
  bool begin_part(std::string_view key, std::string_view help) override {
    add(key, "part", "", help);
    rows.back().is_part = true;
    part_ += (part_.empty() ? "" : ".") + std::string(key);
    parts.push_back(part_);
    lengths_.push_back(key.size());
    return true;
  }
  bool begin_optional(std::string_view key, std::string_view help, bool has_value) override {
    begin_part(key, help);
    rows.back().type = "optional part";
    rows.back().value = has_value ? "" : "absent";
    return true;
  }
  void end_part() override {
    size_t cut = std::min(part_.size(), lengths_.back() + 1);
    part_.resize(part_.size() - cut);
    lengths_.pop_back();
  }
  std::optional<size_t> begin_list(std::string_view key, std::string_view help,
                                   size_t size) override {
    begin_part(key, help);
    rows.back().type = "list of parts";
    rows.back().value = size > 0 ? std::to_string(size) : "empty";
    return 1;
  }
  void begin_element(size_t) override {}
  void end_list() override {}
  std::vector<int> select_alternatives(std::string_view key, int current, Names names,
                                       std::string_view help) override {
    choice_index(key, current, names, help);
    std::vector<int> all;
    headings_.clear();
    for (std::string_view name : names) {
      headings_.push_back(std::string(key) + " " + json_quote(name));
      all.push_back(static_cast<int>(all.size()));
    }
    return all;
  }
  void begin_alternative(int index) override {
    rows.push_back({.parent = part_,
                    .key = "with " + headings_.at(static_cast<size_t>(index)) + ":",
                    .is_heading = true});
    in_choice_ = true;
  }
  void end_alternative() override {
    in_choice_ = false;
    if (rows.back().is_heading)
      rows.back().key.back() = ' ', rows.back().key += "(no further keys)";
  }

 private:
  void add(std::string_view key, std::string type, std::string value, std::string_view help,
           const Bounds& bounds = {}) {
    std::string meaning(help);
    std::string limits = describe_bounds(bounds);
    if (!limits.empty()) meaning += "; " + limits;
    rows.push_back({.parent = part_,
                    .key = std::string(key),
                    .type = std::move(type),
                    .value = std::move(value),
                    .meaning = std::move(meaning),
                    .in_choice = in_choice_});
  }

  std::string part_;
  std::vector<size_t> lengths_;
  std::vector<std::string> headings_;
  bool in_choice_ = false;
};

/// Words of `text` in lines of at most `width` characters.
std::vector<std::string> wrap(const std::string& text, size_t width) {
  std::vector<std::string> lines(1);
  for (size_t from = 0; from < text.size();) {
    size_t space = std::min(text.find(' ', from), text.size());
    std::string word = text.substr(from, space - from);
    from = space + 1;
    std::string& line = lines.back();
    if (line.empty()) {
      line = word;
    } else if (line.size() + 1 + word.size() <= width) {
      line += " " + word;
    } else {
      lines.push_back(word);
    }
  }
  return lines;
}

/// Columns padded to their widest cell; the last takes what is left of the line.
std::string table(const std::vector<Row>& rows) {
  constexpr size_t kWidestType = 30, kWidestValue = 22;
  auto indent = [](const Row& row) { return row.in_choice ? size_t{4} : size_t{2}; };
  std::array<size_t, 3> widths{4, 4, 7};
  for (const Row& row : rows) {
    if (row.is_heading) continue;
    widths[0] = std::max(widths[0], indent(row) + row.key.size());
    for (const std::string& line : wrap(row.type, kWidestType)) {
      widths[1] = std::max(widths[1], line.size());
    }
    for (const std::string& line : wrap(row.value, kWidestValue)) {
      widths[2] = std::max(widths[2], line.size());
    }
  }
  size_t before = widths[0] + widths[1] + widths[2] + 6;
  size_t rest = before + 30 < kLineWidth ? kLineWidth - before : 30;
  std::string text;
  auto put = [&](const std::array<std::vector<std::string>, 4>& cells) {
    size_t lines = 1;
    for (const auto& cell : cells) lines = std::max(lines, cell.size());
    for (size_t i = 0; i < lines; ++i) {
      std::string line;
      for (size_t c = 0, start = 0; c < cells.size(); ++c) {
        line.resize(std::max(line.size(), start), ' ');
        if (i < cells[c].size()) line += cells[c][i];
        if (c < 3) start += widths[c] + 2;
      }
      line.resize(line.find_last_not_of(' ') + 1);
      text += line + "\n";
    }
  };
  put({{{"  key"}, {"type"}, {"default"}, {"meaning"}}});
  for (const Row& row : rows) {
    if (row.is_heading) {
      text += "  " + row.key + "\n";
    } else {
      put({{{std::string(indent(row), ' ') + row.key},
            wrap(row.type, kWidestType),
            wrap(row.value, kWidestValue),
            wrap(row.meaning, rest)}});
    }
  }
  return text;
}

}  // namespace

std::string fields_help(const FieldWalk& walk, const std::string& part) {
  HelpCollector collector;
  walk(collector);
  if (std::find(collector.parts.begin(), collector.parts.end(), part) == collector.parts.end()) {
    std::string known;
    for (const std::string& name : collector.parts) {
      if (name.find('.') == std::string::npos && !name.empty()) {
        known += (known.empty() ? "" : ", ") + name;
      }
    }
    throw UsageError("help recipe: no such part, got " + json_quote(part) + ", wanted one of " +
                     known + did_you_mean(part, collector.parts));
  }
  std::vector<Row> rows;
  std::string heading;
  for (const Row& row : collector.rows) {
    if (row.parent == part) rows.push_back(row);
    std::string full = row.parent.empty() ? row.key : row.parent + "." + row.key;
    if (row.is_part && full == part && heading.empty())
      heading = part + ": " + row.meaning + "\n\n";
  }
  return heading + table(rows);
}

}  // namespace convpass
