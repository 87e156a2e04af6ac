#include "program.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace dsmooth::sampler {
namespace {

// Sums and products of these fit in int, and the 16 bits of a CudaSampler hold them.
constexpr int kMostChannels = (1 << 16) - 1;  // of a cache, outputs of an operation, components
constexpr int kMostFeatures = 1 << 10;        // of a colour
constexpr size_t kMostOperations = (1 << 15) - 1;  // and caches

void require(bool condition, const std::string& where, const std::string& what) {
  if (!condition) throw std::invalid_argument("sampler program, " + where + ": " + what);
}

// Checks that no step reads or writes outside of its memory, and that no operation reads a pixel
// that is not drawn yet: the images would look right. Python makes the programs, so nothing else is
// checked.
class Checker {
 public:
  explicit Checker(const Program& program) : p_(program) {}

  void run() const {
    require(p_.image_channels == 1 || p_.image_channels == 3, "image", "channels must be 1 or 3");
    require(p_.image_addends == 1 || p_.image_addends == 2, "image", "addends must be 1 or 2");
    require(p_.n_atoms >= 0 && p_.n_atoms <= kBytes, "mixture", "number of atoms");
    require(p_.n_mix >= 1 && p_.n_mix <= kMostChannels, "mixture",
            "n_mix must lie in 1 .. " + std::to_string(kMostChannels) + ", got " +
                std::to_string(p_.n_mix));
    require(p_.ops.size() <= kMostOperations && p_.caches.size() <= kMostOperations, "size",
            "too many operations or caches");
    require(p_.n_classes >= 0 && p_.n_classes <= kMostChannels, "classes", "number out of range");
    for (size_t i = 0; i < p_.caches.size(); ++i) check_cache(p_.caches[i], std::to_string(i));
    check_features();
    check_use(p_.image, 0, p_.seen_channels(), true, "image");
    require(p_.context == kNone || p_.conditioned, "context", "the model is not conditioned");
    if (p_.context != kNone) check_use(p_.context, 0, p_.pixel_channels(), true, "context");
    const int n_params = cache(p_.params, "params").channels;
    require(n_params == p_.n_params(), "params",
            "must have " + std::to_string(p_.n_params()) + " channels for n_mix " +
                std::to_string(p_.n_mix) + " and " + std::to_string(p_.n_atoms) + " atoms, got " +
                std::to_string(n_params));
    check_use(p_.params, 0, n_params, false, "params");
    for (size_t i = 0; i < p_.ops.size(); ++i)
      check_op(p_.ops[i], "operation " + std::to_string(i));
  }

 private:
  static void check_cache(const Cache& c, const std::string& index) {
    const std::string where = "cache " + index;
    require(c.resolution >= 0 && c.resolution < kResolutions, where, "resolution out of range");
    require(c.channels >= 1 && c.channels <= kMostChannels && c.rows >= 0 && c.rows <= 3, where,
            "size out of range");
    require(!c.operand || c.channels % 2 == 0, where, "operands come in pairs of channels");
  }

  void check_features() const {
    require(p_.features >= 0 && p_.features <= kMostFeatures && p_.features % 2 == 0, "features",
            "number out of range");
    require(p_.feature_table.size() == static_cast<size_t>(kBytes) * p_.features, "features",
            "size of the table");
  }

  const Cache& cache(int index, const std::string& where) const {
    require(index >= 0 && index < static_cast<int>(p_.caches.size()), where, "no such cache");
    return p_.caches[index];
  }

  void check_use(int index, int resolution, int channels, bool operand,
                 const std::string& where) const {
    const Cache& c = cache(index, where);
    require(c.resolution == resolution && c.operand == operand, where,
            "resolution or type of a cache");
    require(c.channels == channels, where, "channels of a cache");
  }

  void check_op(const Op& op, const std::string& where) const {
    require(op.phase >= Phase::kEncoder && op.phase <= Phase::kHead, where, "no such phase");
    require(op.resolution >= 0 && op.resolution < kResolutions, where, "resolution out of range");
    require(op.n >= 1 && op.n <= kMostChannels && (!op.gate || op.n % 2 == 0), where,
            "number of outputs");
    require(op.bias.size() == static_cast<size_t>(op.n), where, "size of the bias");
    require(
        op.projection.empty() || op.projection.size() == static_cast<size_t>(op.n) * p_.n_classes,
        where, "size of the projection");
    require(!op.gate || op.residual_in != kNone, where, "a gate needs a residual");
    const int n = op.channels();
    for (int index : {op.residual_in, op.add, op.residual_out})
      if (index != kNone) check_use(index, op.resolution, n, false, where);
    if (op.act_out != kNone) check_use(op.act_out, op.resolution, op.act_channels(), true, where);
    if (op.raw_out != kNone) check_use(op.raw_out, op.resolution, n + n % 2, true, where);
    require(op.terms.size() >= 1 && op.terms.size() <= 5, where, "number of terms");
    for (const Term& term : op.terms) check_term(op, term, where);
    const auto in_pixel_part = [](const Term& term) { return !term.row_part; };
    require(std::any_of(op.terms.begin(), op.terms.end(), in_pixel_part), where,
            "all terms belong to the row part");
  }

  void check_term(const Op& op, const Term& term, const std::string& where) const {
    const Cache& c = cache(term.cache, where);
    require(c.operand, where, "a term reads a cache that holds no operands");
    require(term.channels >= 1 && term.channels <= c.channels && term.channels % 2 == 0, where,
            "channels of a term");
    require(std::abs(c.resolution - op.resolution) <= 1, where, "a term skips a resolution");
    require(term.taps >= 1 && term.taps <= 3, where, "number of taps");
    require(term.dcol >= -1 && term.dcol <= 2 - term.taps, where, "a tap beyond the padding");
    require(term.weight.size() == static_cast<size_t>(op.n) * term.taps * term.channels, where,
            "size of a weight");
    require(term.drow >= -2 && term.drow <= 1, where, "a row beyond the padding");
    if (op.phase == Phase::kEncoder) {
      require(writer_of(term.cache) == Phase::kEncoder && c.rows == 0, where,
              "reads more than the context");
    } else if (op.phase == Phase::kVertical || (op.phase == Phase::kHorizontal && term.row_part)) {
      // Runs when the row begins, before any pixel of it.
      const bool in_order = writer_of(term.cache) >= Phase::kHorizontal;
      require(term.drow < (in_order ? 0 : 1), where, "reads a row before it is drawn");
      // The row part is early enough for rings that advance with the pixels, but for the image's.
      const int rows = c.rows + (in_order && term.row_part && term.cache != p_.image ? 1 : 0);
      require(c.rows == 0 || -term.drow < rows, where, "reads a row that is overwritten");
    } else {
      // The image has no pixel at this position yet.
      require(term.drow == 0 && term.dcol + term.taps <= (term.cache == p_.image ? 0 : 1), where,
              "reads a pixel before it is drawn");
    }
  }

  // The last phase in which a cache is written.
  Phase writer_of(int index) const {
    Phase last = index == p_.image ? Phase::kHorizontal : Phase::kEncoder;
    for (const Op& op : p_.ops)
      for (int to : {op.residual_out, op.act_out, op.raw_out})
        if (to == index) last = std::max(last, op.phase);
    return last;
  }

  const Program& p_;
};

}  // namespace

Program checked(Program program) {
  Checker(program).run();
  std::stable_sort(program.ops.begin(), program.ops.end(),
                   [](const Op& a, const Op& b) { return a.phase < b.phase; });
  return program;
}

}  // namespace dsmooth::sampler
