#include "convpass/core/file.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>
#include <stdexcept>

#include "tests/core/tensor_files.h"

namespace convpass {
namespace {

size_t files_in(const TempFolder& folder) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder.path()), {}));
}

TEST(MappedFile, ShowsTheBytesOfTheFile) {
  TempFolder folder;
  auto mapped = MappedFile::open(write_text(folder / "a", "hello"));
  EXPECT_EQ(std::string(mapped->bytes().begin(), mapped->bytes().end()), "hello");
}

TEST(MappedFile, RefusesWhatIsNoReadableFile) {
  TempFolder folder;
  EXPECT_THROW(MappedFile::open(folder / "missing"), FileError);
  EXPECT_THROW(MappedFile::open(folder.path()), FileError);
  EXPECT_THROW(MappedFile::open(write_text(folder / "empty", "")), FileError);
  EXPECT_THROW(MappedFile::open("/dev/zero"), FileError);
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_THROW(MappedFile::open(folder / "fifo"), FileError);
}

TEST(ReadFile, ReadsWholeFilesAndRefusesFolders) {
  TempFolder folder;
  auto bytes = read_file(write_text(folder / "a", std::string("a\0b", 3)));
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), std::string("a\0b", 3));
  EXPECT_TRUE(read_file(write_text(folder / "empty", "")).empty());
  EXPECT_THROW(read_file(folder / "missing"), FileError);
  EXPECT_THROW(read_file(folder.path()), FileError);
}

TEST(WriteAtomically, ReplacesTheFileAndLeavesNothingElse) {
  TempFolder folder;
  write_atomically(folder / "a", "old");
  write_atomically(folder / "a", "new");
  EXPECT_EQ(read_text(folder / "a"), "new");
  EXPECT_EQ(files_in(folder), 1u);
}

TEST(RemoveLeftovers, TakesWhatKilledWritersLeftAndNothingElse) {
  TempFolder folder;
  write_text(folder / ".convpass-2147483646-3.tmp", "no such process");
  write_text(folder / (".convpass-" + std::to_string(::getppid()) + "-3.tmp"), "a living process");
  // In a container the number of a process is that of the one before it.
  write_text(folder / (".convpass-" + std::to_string(::getpid()) + "-3.tmp"), "its number is ours");
  write_text(folder / ".convpass-x.tmp", "another's name");
  write_text(folder / "kept", "kept");
  remove_leftovers(folder.path());
  EXPECT_EQ(files_in(folder), 3u);
  EXPECT_FALSE(std::filesystem::exists(folder / ".convpass-2147483646-3.tmp"));
  remove_leftovers(folder / "missing");
}

TEST(WriteAtomically, KeepsTheOldFileWhenTheWriterThrows) {
  TempFolder folder;
  write_text(folder / "a", "old");
  auto write = [](std::ostream& out) {
    out << "half";
    throw std::logic_error("no more");
  };
  EXPECT_THROW(write_atomically(folder / "a", write), std::logic_error);
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(files_in(folder), 1u);
}

TEST(WriteAtomically, KeepsTheOldFileWhenTheDiskIsFull) {
  TempFolder folder;
  write_text(folder / "a", "old");
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 1 << 16;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(write_atomically(folder / "a", std::string(1 << 20, 'x')), FileError);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(files_in(folder), 1u);
}

TEST(WriteAtomically, RefusesFoldersDevicesAndMissingParents) {
  TempFolder folder;
  EXPECT_THROW(write_atomically(folder.path(), "x"), FileError);
  EXPECT_THROW(write_atomically("/dev/null", "x"), FileError);
  EXPECT_THROW(write_atomically(folder / "no/such/folder", "x"), FileError);
  EXPECT_EQ(files_in(folder), 0u);
}

TEST(WriteAtomically, WritesNamesAsLongAsTheFileSystemTakes) {
  TempFolder folder;
  const std::string name(255, 'n');
  write_atomically(folder / name, "x");
  EXPECT_EQ(read_text(folder / name), "x");
}

TEST(FolderLock, HoldsAFolderUntilItGoes) {
  TempFolder folder;
  {
    const FolderLock lock(folder.path());
    EXPECT_THROW(FolderLock{folder.path()}, FileError);
    EXPECT_EQ(files_in(folder), 0u);
    const pid_t child = ::fork();  // another process sees it too
    if (child == 0) {
      try {
        FolderLock other(folder.path());
        ::_exit(0);
      } catch (const FileError&) {
        ::_exit(7);
      }
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(WEXITSTATUS(status), 7);
  }
  const FolderLock again(folder.path());
}

}  // namespace
}  // namespace convpass
