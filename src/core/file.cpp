#include "convpass/core/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "convpass/core/error.h"

namespace convpass {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void fail(const std::filesystem::path& file, const std::string& what, int error) {
  throw FileError(file, what + ": " + std::strerror(error));
}

/// Opens a regular file for reading and says how long it is.
Descriptor open_regular(const std::filesystem::path& file, size_t& size) {
  Descriptor opened(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (opened.get() < 0) fail(file, "cannot be opened", errno);
  struct stat status {};
  if (::fstat(opened.get(), &status) != 0) fail(file, "cannot be examined", errno);
  if (S_ISDIR(status.st_mode)) throw FileError(file, "is a folder, a file is wanted");
  if (!S_ISREG(status.st_mode)) throw FileError(file, "is not a regular file");
  size = static_cast<size_t>(status.st_size);
  return opened;
}

/// Removes the temporary neighbour unless it was renamed.
struct Neighbour {
  std::filesystem::path path;
  bool renamed = false;
  ~Neighbour() {
    if (!renamed) ::unlink(path.c_str());
  }
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& file) {
  size_t size = 0;
  Descriptor opened = open_regular(file, size);
  if (size == 0) throw FileError(file, "is empty");
  // Private and writable: a tensor that points here and is written to by mistake changes its own
  // copy of the page instead of crashing, and never the file.
  void* data =
      ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, opened.get(), 0);
  if (data == MAP_FAILED) fail(file, "cannot be mapped", errno);
  std::shared_ptr<MappedFile> mapped(new MappedFile);
  mapped->data_ = static_cast<const uint8_t*>(data);
  mapped->size_ = size;
  return mapped;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

std::vector<uint8_t> read_file(const std::filesystem::path& file) {
  size_t size = 0;
  Descriptor opened = open_regular(file, size);
  std::vector<uint8_t> bytes(size);
  size_t done = 0;
  while (done < size) {
    ssize_t n = ::read(opened.get(), bytes.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(file, "cannot be read", errno);
    if (n == 0) throw FileError(file, "became shorter while it was read");
    done += static_cast<size_t>(n);
  }
  return bytes;
}

void write_atomically(const std::filesystem::path& file,
                      const std::function<void(std::ostream&)>& write) {
  std::error_code status_error;
  auto status = std::filesystem::status(file, status_error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    throw FileError(file, "is not a regular file, it cannot be written");
  }
  // The name does not hold the target's, which may be as long as a name can be.
  static std::atomic<uint64_t> counter{0};
  auto folder = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
  Neighbour neighbour{folder / (".convpass-" + std::to_string(::getpid()) + "-" +
                                std::to_string(counter++) + ".tmp")};
  {
    errno = 0;
    std::ofstream out(neighbour.path, std::ios::binary | std::ios::trunc);
    if (!out) fail(file, "cannot be written", errno);
    write(out);
    out.close();
    if (!out) fail(file, "cannot be written", errno != 0 ? errno : EIO);
  }
  sync_file(neighbour.path);
  if (::rename(neighbour.path.c_str(), file.c_str()) != 0) fail(file, "cannot be written", errno);
  neighbour.renamed = true;
  // The file is in place; that some file systems cannot sync a folder does not undo it.
  Descriptor opened(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (opened.get() >= 0) ::fsync(opened.get());
}

void sync_file(const std::filesystem::path& file) {
  Descriptor opened(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (opened.get() < 0 || ::fsync(opened.get()) != 0) fail(file, "cannot be synced", errno);
}

FolderLock::FolderLock(const std::filesystem::path& folder)
    : opened_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (opened_ < 0) return;  // whoever uses the folder says why it cannot be used
  struct stat held {
  }, named{};
  bool ours = ::flock(opened_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
  // Its former holder may have removed it between the two.
  ours = ours && ::fstat(opened_, &held) == 0 && ::stat(folder.c_str(), &named) == 0 &&
         held.st_ino == named.st_ino;
  if (ours) return;
  ::close(opened_);
  throw FileError(folder, "another convpass is at work in it, wanted its end or another --out");
}

FolderLock::~FolderLock() {
  if (opened_ >= 0) ::close(opened_);
}

void remove_leftovers(const std::filesystem::path& folder) {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(folder, none)) {
    int pid = 0, counted = 0, read = 0;
    const std::string name = entry.path().filename().string();
    if (std::sscanf(name.c_str(), ".convpass-%d-%d.tmp%n", &pid, &counted, &read) < 2) continue;
    if (static_cast<size_t>(read) != name.size()) continue;
    // A number of ours is that of an earlier process: in a container they repeat.
    if (pid != ::getpid() && (::kill(pid, 0) == 0 || errno == EPERM)) continue;
    std::filesystem::remove(entry.path(), none);
  }
}

void write_atomically(const std::filesystem::path& file, const std::string& text) {
  write_atomically(file, [&](std::ostream& out) {
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
  });
}

}  // namespace convpass
