// Compiled for AVX512 with VNNI and BF16 and for AMX on x86-64 (see CMakeLists.txt), called only
// where Unit::tiles is in use.
#include "models/gemm_kernels.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cctype>
#include <cstdlib>
#include <string>

#include "models/amx.h"
#include "models/product_finish.h"

namespace convpass::kernels::tiles {
namespace {

/// Rows of a panel whose sums are complete. While the tiles multiply the next ones, the vectors
/// finish these, a few at each step: the two units work at the same time.
template <Element kElement>
struct Unfinished {
  const PanelSums* sums = nullptr;
  int64_t first_row = 0, first_column = 0;
  int next = 0, end = 0;  ///< of the rows

  void finish_some(const Product& product, int count) {
    const int64_t columns = std::min(kPanel, product.columns - first_column);
    for (const int stop = std::min(end, next + count); next < stop; ++next)
      for (int64_t c = 0; c < columns; c += kBlock) {
        if constexpr (kElement == Element::s8)
          finish(product, first_row + next, first_column + c, sums->whole(next, c),
                 sums->whole(next, c + kSide));
        else
          finish(product, first_row + next, first_column + c, sums->real(next, c),
                 sums->real(next, c + kSide));
      }
  }
};

/// The end of a depth that is no multiple of a step, followed by zeros.
struct DepthEnd {
  int64_t groups;
  alignas(64) uint8_t rows[kBlock][kLineBytes] = {};
  alignas(64) uint32_t panel[kStep][kPanel] = {};

  DepthEnd(const uint32_t* from, int64_t count) : groups(count) {
    if (count > 0) std::memcpy(panel, from, static_cast<size_t>(count * kPanel) * 4);
  }
  void take(const uint8_t* from, int64_t stride, int64_t count) {
    for (int64_t r = 0; r < count; ++r)
      std::memcpy(rows[r], from + r * stride, static_cast<size_t>(groups) * 4);
  }
};

template <Element kElement>
class PanelProduct {
 public:
  PanelProduct(const Product& product, int64_t panel)
      : product_(product),
        first_column_(panel * kPanel),
        panel_(static_cast<const uint32_t*>(product.weight) + panel * product.weight_stride / 4),
        steps_(product.depth / group_of(kElement) / kStep),
        end_(panel_ + steps_ * kStep * kPanel, product.depth / group_of(kElement) % kStep),
        share_(static_cast<int>(kSide / std::max<int64_t>(1, steps_)) + 1) {}

  void run(int64_t first_row, int64_t last_row) {
    for (int64_t row = first_row; row < last_row; row += kBlock) {
      const int64_t rows = std::min<int64_t>(kBlock, last_row - row);
      tiles_.set(rows);
      PanelSums& sums = sums_[turn_];
      turn_ = 1 - turn_;
      for (int64_t column = 0; column < std::min(kPanel, product_.columns - first_column_);
           column += kBlock) {
        if (rows > kSide)
          block<true>(row, rows, column, sums);
        else
          block<false>(row, rows, column, sums);
      }
      before_.finish_some(product_, kBlock);
      before_ = {&sums, row, first_column_, 0, static_cast<int>(rows)};
    }
    before_.finish_some(product_, kBlock);
  }

 private:
  template <bool kBoth>
  void block(int64_t row, int64_t rows, int64_t column, PanelSums& sums) {
    const uint8_t* input =
        static_cast<const uint8_t*>(product_.input) + row * product_.input_stride;
    clear_tiles<kBoth>();
    for (int64_t step = 0; step < steps_; ++step) {
      multiply_step<kElement, kBoth>(input + step * kLineBytes, product_.input_stride,
                                     panel_ + step * kStep * kPanel + column);
      before_.finish_some(product_, share_);
    }
    if (end_.groups > 0) {
      end_.take(input + steps_ * kLineBytes, product_.input_stride, rows);
      finish_stores();
      multiply_step<kElement, kBoth>(&end_.rows[0][0], kLineBytes, &end_.panel[0][column]);
    }
    store_tiles<kBoth>(sums, column);
  }

  const Product& product_;
  int64_t first_column_;
  const uint32_t* panel_;
  int64_t steps_;
  DepthEnd end_;
  int share_;  ///< rows to finish at each step
  Tiles tiles_;
  PanelSums sums_[2];
  int turn_ = 0;
  Unfinished<kElement> before_;
};

bool granted() {
  // Linux hands the tiles' registers to a process that asks: arch_prctl(2), ARCH_REQ_XCOMP_PERM.
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

bool cpu_has_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;  // leaf 7: AMX_BF16, AMX_TILE and AMX_INT8 in EDX
  constexpr unsigned kAll = 1u << 22 | 1u << 24 | 1u << 25;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAll) == kAll;
}

/// A limit that keeps oneDNN off the tiles does so here, too, so that LibTorch and these kernels
/// are compared on equal terms. The names of instruction sets with tiles have AMX in them.
bool limited() {
  const char* limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (limit == nullptr) limit = std::getenv("DNNL_MAX_CPU_ISA");
  if (limit == nullptr) return false;
  std::string isa(limit);
  for (char& letter : isa)
    letter = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  return !isa.empty() && isa != "ALL" && isa != "DEFAULT" && isa.find("AMX") == std::string::npos;
}

}  // namespace

bool supported() {
  static const bool has = kernels::supported() && cpu_has_tiles() && !limited() && granted();
  return has;
}

void multiply(const Product& product, int64_t panel, int64_t first_row, int64_t last_row) {
  if (product.element == Element::s8)
    PanelProduct<Element::s8>(product, panel).run(first_row, last_row);
  else
    PanelProduct<Element::bf16>(product, panel).run(first_row, last_row);
}

}  // namespace convpass::kernels::tiles

#else

namespace convpass::kernels::tiles {
bool supported() { return false; }
void multiply(const Product&, int64_t, int64_t, int64_t) {}
}  // namespace convpass::kernels::tiles

#endif
