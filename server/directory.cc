#include "server/directory.h"

#include <algorithm>
#include <utility>

namespace kvdepot {
namespace {

bool SameRun(const TokenRun& a, const TokenRun& b) {
  return a.data == b.data && a.form == b.form && a.capacity == b.capacity && a.first == b.first &&
         a.count == b.count;
}

// Extents are compared by identity: the bytes of an old one may have become a new one.
bool SameLayer(const Directory::Layer& a, const Directory::Layer& b) {
  return a.first_position == b.first_position && a.extents == b.extents && a.room == b.room &&
         a.calibration == b.calibration &&
         std::equal(a.runs.begin(), a.runs.end(), b.runs.begin(), b.runs.end(), SameRun);
}

}  // namespace

bool SameContent(const Directory& a, const Directory& b) {
  return a.generation == b.generation && a.token_count == b.token_count &&
         std::equal(a.layers.begin(), a.layers.end(), b.layers.begin(), b.layers.end(), SameLayer);
}

DirectoryRef NewestDirectory(Session* session) {
  auto directory = std::make_shared<Directory>();
  directory->generation = session->generation();
  directory->token_count = session->committed_token_count();
  for (size_t i = 0; i < session->layers().size(); ++i) {
    const Layer& layer = session->layers()[i];
    Directory::Layer entry;
    entry.first_position = std::min(layer.first_held(), directory->token_count);
    LayerView view = layer.View(entry.first_position, directory->token_count);
    entry.runs = std::move(view.runs);
    entry.extents = std::move(view.extents);
    if (session->writer().has_value()) entry.room = session->writer()->room[i];
    entry.calibration = layer.calibration();
    directory->layers.push_back(std::move(entry));
  }
  DirectoryRef last = session->last_directory();
  if (last != nullptr && SameContent(*last, *directory)) return last;
  directory->version = session->NextDirectoryVersion();
  session->set_last_directory(directory);
  return directory;
}

}  // namespace kvdepot
