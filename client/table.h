// Tables for people: columns as wide as their widest cell, numbers to the right.
#ifndef KVDEPOT_CLIENT_TABLE_H_
#define KVDEPOT_CLIENT_TABLE_H_

#include <string>
#include <utility>
#include <vector>

namespace kvdepot {

class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // As many cells as columns, in printable form (printable.h).
  void AddRow(const std::vector<std::string>& cells);

  // Title line (left out where all titles are empty), then the rows, each ending in a newline.
  std::string ToString() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_TABLE_H_
