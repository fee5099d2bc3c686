// A layer over time, forward and backward.
//
// Work is divided into groups of sequences, and a group's units among the members of a team, who meet once a step. By blocks
// of steps, so that what one part leaves the next still finds in the cache:
//
//   forward    zx of the block's rows, one product; then step by step zh, added to it, and the pointwise function
//   backward   step by step dz, and dh = dz W_hh; then for the block's rows the products that give dW_ih, dW_hh, db and dx
//
// Where the states are known and the gates are not, these are one product for all rows of the block: `replay`.
#pragma once
#include <algorithm>
#include <array>
#include <vector>
#include "cells.h"
#include "memory.h"
#include "product.h"
#include "team.h"

namespace bptt { namespace BPTT_ISA {

constexpr int64_t kCache = 1 << 20;   // bytes of a second-level cache
constexpr int64_t kMeeting = 1000;    // cycles of a step from which on it is worth to share it
constexpr int64_t kWaking = 15000;    // cycles of work for which it is worth to wake a thread
constexpr int64_t kTogether = 96;     // rows of a weight gradient for which it is worth to pack the other factor
// A weight gradient is a sum over all rows: parts of kPartRows (of biases in turn parts of kBiasRows) are added up, and where there are many rows the sum so far goes to
// one in double, each time that kGroupRows have come. In one running sum the rounding would grow with the number of rows, and a
// sum of 2^24 ones would stay there.
constexpr int64_t kPartRows = 512, kBiasRows = 64, kGroupRows = 8192;

// S: the numbers of all tensors and sums; C: the cell; W: the elements that products multiply, pairs of bfloat16 or S itself.
template <class S, class C, class W = S> class Layer {
 public:
  Layer(const bptt_problem& problem, bptt_parallel_for pool)
      : p(problem), pool_(pool), H(p.hidden), U(whole<S>(H)), P(p.projected ? p.projected : H), D(p.inputs),
        N(offset(p.steps)), team_(team_size()), groups_(std::min(p.threads / team_, p.batch)), units_(U, team_),
        outputs_(P, team_), zeros_(zeros_size()), room_each_(kPer<W> == 1 ? 0 : kRoundedRows * std::max(depth<W>(D) + depth<W>(P), depth<W>(G * U))),
        room_(p.threads * room_each_) {
    std::fill_n(zeros_.data, zeros_size(), S(0));
    products_ = divide_gates();
  }

  void forward() {
    expect(p.h, p.h_is_known ? 0 : N * P * sizeof(S));
    expect(p.c, p.c ? N * H * sizeof(S) : 0);
    expect(p.gates, p.gates ? N * G * U * sizeof(S) : 0);
    expect(p.candidate, p.candidate ? N * U * sizeof(S) : 0);
    const Operands operands(*this);
    const int64_t most = block_rows();
    Buffer<S> working(p.gates ? 0 : p.threads * most * (G + C::kApart) * U), raw(p.projected ? p.batch * U : 0);
    Indices indices(p.threads, most);
    teams(0, p.steps, [&](const Part& part) {
      Rows rows{*this, indices[part.id], working + part.id * most * (G + C::kApart) * U};
      for (int64_t i = 0; i < p.steps;) {
        const int64_t start = i;
        rows.clear();
        do {
          rows.add(step_at(i), part);
        } while (++i < p.steps && int64_t(rows.index.size()) + part.last - part.first <= most);
        if (p.h_is_known) {
          replay(start, i, rows, part, operands, Found::gates_and_c);
          continue;
        }
        if (!operands.joined) project(rows, part, operands);
        for (int64_t s = start, done = 0; s < i; ++s) done += forward_step(step_at(s), rows, done, part, operands, raw);
      }
      for (int64_t r = part.first; r < part.last && !p.h_is_known; ++r) copy_last(r, part);
    });
  }

  void backward() {
    const int64_t most = block_rows();
    const bool replays = G > 1 && !p.gates;
    Block block(*this, most, replays);
    Buffer<W> w_hh(Packed<W>::size(G * U, P)), w_ih(p.d_x ? Packed<W>::size(G * U, D) : 0);
    Buffer<W> w_hr(p.projected ? Packed<W>::size(P, H) : 0);
    Indices indices(replays ? p.threads : 0, most);
    std::unique_ptr<const Operands> operands(replays ? new Operands(*this) : nullptr);
    const Packed<W> back{w_hh, G * U, P, outputs_.wide}, to_x{w_ih, G * U, D, Panels<S>(D, 1).wide};
    const Packed<W> to_raw{w_hr, P, H, units_.wide};
    auto gate_row = [&](const void* matrix, int64_t width) {
      return [=](int64_t k) { return k % U < H ? pointer(matrix) + (k / U * H + k % U) * width : zeros_.data; };
    };
    const int64_t packers = threads_for(G * H * (P + (p.d_x ? D : 0)) / 4);
    parallel(pool_, packers, [&](int64_t begin, int64_t end) {
      const int64_t first = G * U / 2 * begin / packers * 2, last = G * U / 2 * end / packers * 2;
      for (int64_t j = 0; j < P; j += back.wide) back.pack_rows(j, first, last, gate_row(p.w_hh, P));
      if (p.d_x)
        for (int64_t j = 0; j < D; j += to_x.wide) to_x.pack_rows(j, first, last, gate_row(p.w_ih, D));
      if (p.projected && begin == 0)
        for (int64_t j = 0; j < U; j += to_raw.wide)
          to_raw.pack_rows(j, 0, P, [&](int64_t k) { return pointer(p.w_hr) + k * H; });
    });
    for (int64_t r = 0; r < p.batch; ++r) {
      copy_state(block.dh + r * whole<S>(P), p.d_h_last, r, P);
      if (C::kStates == 2) copy_state(block.dc + r * U, p.d_c_last, r, H);
    }
    for (int64_t i = p.steps; i > 0;) {
      const int64_t last = i;
      block.rows = 0;
      do {
        const int64_t t = step_at(--i);
        block.rows += size(t);
      } while (i > 0 && block.rows + size(step_at(i - 1)) <= most);
      const int64_t first_step = std::min(step_at(i), step_at(last - 1));
      block.first_row = offset(first_step);
      teams(first_step, first_step + last - i, [&](const Part& part) {
        if (replays) {  // each part its own units: no need to meet
          Rows rows{*this, indices[part.id], block.gates, block.first_row};
          rows.clear();
          for (int64_t s = i; s < last; ++s) rows.add(step_at(s), part);
          replay(i, last, rows, part, *operands, Found::gates);
        }
        for (int64_t s = last - 1; s >= i; --s) backward_step(step_at(s), part, block, back, to_raw);
      });
      products_of_all_rows(block, to_x);
    }
    if (block.wide) widen(block, true);
    if (!C::kApart && p.d_b_ih && p.d_b_hh) std::copy_n(static_cast<S*>(p.d_b_ih), G * H, static_cast<S*>(p.d_b_hh));  // the same sum
    for (int64_t r = 0; r < p.batch; ++r) {
      if (p.d_h0) std::copy_n(block.dh + r * whole<S>(P), P, static_cast<S*>(p.d_h0) + r * P);
      if (C::kStates == 2 && p.d_c0) std::copy_n(block.dc + r * U, H, static_cast<S*>(p.d_c0) + r * H);
    }
  }

 private:
  static constexpr int L = kLanes<S>, G = C::kGates;
  static constexpr int64_t kWeightBytes = sizeof(W) / kPer<W>;
  const bptt_problem& p;
  const bptt_parallel_for pool_;
  const int64_t H, U, P, D, N, team_, groups_;
  const Panels<S> units_, outputs_;
  Buffer<S> zeros_;
  const int64_t room_each_;  // for each thread's left-hand sides as pairs
  Buffer<W> room_;

  // What one thread does in a loop over time: rows [first, last) of the batch, some of the units and of the outputs.
  struct Part {
    const Layer& layer;
    Team& team;
    int member, member_end;
    int64_t id, first, last, unit, unit_end, output, output_end;
    mutable int64_t meetings = 0;
    int64_t end(int64_t t) const { return std::min(last, layer.size(t)); }
    void meet() const {
      if (layer.team_ > 1) team.meet(member, member_end, ++meetings);
    }
  };

  // Gates whose zx, and zh, are one product: all that are not apart, but each alone where a team shares their units.
  struct Gates {
    int first, count;
    int64_t wide, units;
    Columns columns(const Part& part, bool backwards = false) const {
      return count > 1 ? Columns{0, count * units, backwards} : Columns{part.unit, part.unit_end, backwards};
    }
  };
  std::vector<Gates> products_;

  // The gradients of the parameters, to which the blocks add.
  struct Sum {
    S* total;  // [size / width, width]; null: not wanted
    int64_t width, size;
  };
  std::array<Sum, 5> sums() const {
    const int64_t rows = G * H;
    return {Sum{static_cast<S*>(p.d_w_ih), D, rows * D}, {static_cast<S*>(p.d_w_hh), P, rows * P},
            {static_cast<S*>(p.d_b_ih), 1, rows}, {static_cast<S*>(p.d_b_hh), 1, rows},
            {static_cast<S*>(p.d_w_hr), H, p.projected ? P * H : 0}};
  }
  int64_t parameters() const {
    int64_t all = 0;
    for (const Sum& sum : sums()) all += sum.size;
    return all;
  }
  // A block of steps of the backward, row by row, and the gradient of the state that goes from block to block.
  struct Block {
    Buffer<S> dz, dz_hidden_apart, dh, dc, dh_projected, raw, d_raw, gates;
    std::vector<const S*> h_before;
    int64_t rows = 0, first_row = 0;
    bool begins = true;  // its weight gradients begin the sums
    int64_t summed = 0;  // rows in these
    Buffer<double> wide;  // the sums before; none where there are few rows, or the numbers have digits enough
    Block(const Layer& l, int64_t most, bool replays)
        : dz(most * G * l.U), dz_hidden_apart(C::kApart ? most * G * l.U : 0), dh(l.p.batch * whole<S>(l.P)),
          dc(C::kStates == 2 ? l.p.batch * l.U : 0), dh_projected(l.p.projected ? most * whole<S>(l.P) : 0),
          raw(l.p.projected ? most * l.U : 0), d_raw(l.p.projected ? l.p.batch * l.U : 0),
          gates(replays ? most * (G + C::kApart) * l.U : 0), h_before(most),
          wide(sizeof(S) == 4 && l.p.d_w_ih && l.N > 4 * kGroupRows ? l.parameters() : 0) {
      if (wide) std::fill_n(wide.data, l.parameters(), 0.);
    }
    S* dz_hidden() const { return C::kApart ? dz_hidden_apart.data : dz.data; }
  };

  // The sums so far go to those in double; the last time all are in, and go back.
  void widen(Block& block, bool is_last) const {
    double* wide = block.wide;
    for (const Sum& sum : sums()) {
      const int64_t threads = threads_for(sum.size / L * 8);
      if (sum.total)
        parallel(pool_, threads, [&](int64_t begin, int64_t end) {
          for (int64_t j = sum.size * begin / threads; j < sum.size * end / threads; ++j) {
            wide[j] += sum.total[j];
            if (is_last) sum.total[j] = S(wide[j]);
          }
        });
      wide += sum.size;
    }
    block.begins = true;
    block.summed = 0;
  }

  struct Zero {
    const S* zeros;
    const S* operator()(int64_t) const { return zeros; }
  };
  W* room(int64_t thread) const { return room_ + thread * room_each_; }
  static const S* pointer(const void* q) { return static_cast<const S*>(q); }
  int64_t zeros_size() const { return std::max({whole<S>(P), U, whole<S>(D), int64_t(kTileVectors * L)}); }
  int64_t offset(int64_t t) const { return p.offsets ? p.offsets[t] : t * p.batch; }
  int64_t size(int64_t t) const { return offset(t + 1) - offset(t); }
  int64_t step_at(int64_t i) const { return p.reverse ? p.steps - 1 - i : i; }
  S* gates(int64_t row) const { return static_cast<S*>(p.gates) + row * G * U; }
  S* candidate(int64_t row) const { return static_cast<S*>(p.candidate) + row * U; }
  S* h(int64_t row) const { return static_cast<S*>(p.h) + row * P; }
  S* c(int64_t row) const { return static_cast<S*>(p.c) + row * H; }

  std::vector<Gates> divide_gates() const {
    std::vector<Gates> all;
    const int together = G - C::kApart, step = team_ > 1 ? 1 : together;
    for (int g = 0; g < together; g += step) all.push_back({g, step, step > 1 ? Panels<S>(step * U, 1).wide : units_.wide, U});
    if (C::kApart) all.push_back({together, 1, units_.wide, U});
    return all;
  }
  Packed<W> weight(W* data, const Gates& some, int64_t K) const {
    return {data + some.first * Packed<W>::size(K, U), K, some.count * U, some.wide};
  }
  auto rows_of(const void* matrix, const Gates& some, int64_t width) const {
    return [=](int64_t column) -> typename Packed<W>::Source {
      const int64_t unit = column % U;
      return {pointer(matrix) + ((some.first + column / U) * H + unit) * width, int(std::min<int64_t>(L, H - unit))};
    };
  }
  Packed<W> projection(W* data) const { return {data, H, P, outputs_.wide}; }

  // The state before row r of step t, in one of its buffers.
  const S* before(int64_t t, int64_t r, const void* initial, const void* all, int64_t width) const {
    if (p.cut && p.cut[offset(t) + r]) return zeros_;
    const int64_t s = p.reverse ? t + 1 : t - 1;
    if (s < 0 || s >= p.steps || r >= size(s)) return pointer(initial) + r * width;
    return pointer(all) + (offset(s) + r) * width;
  }

  // ---- Division of the work

  // Sequences of a step, in the mean.
  int64_t mean_size() const { return std::max<int64_t>(1, N / p.steps); }
  // Cycles of one core for one step's recurrent product, about.
  int64_t step_cycles() const { return mean_size() * G * U * whole<S>(P) / L; }
  // Threads that are worth waking for that many cycles.
  int64_t threads_for(int64_t cycles) const { return std::max<int64_t>(1, std::min(p.threads, cycles / kWaking)); }

  // Members of a team: as few as give each group enough sequences for full tiles, in the mean of all steps, and each member
  // weights that fit its cache; one where a step is shorter than what meeting costs.
  int64_t team_size() const {
    const int64_t bytes = kWeightBytes * G * U * P;
    for (int64_t team = 1; team < p.threads; ++team)
      if (p.threads % team == 0 && mean_size() * team >= p.threads * kTileRows && bytes / team <= kCache / 4) return team;
    return step_cycles() < kMeeting ? 1 : std::min(p.threads, U / L);
  }

  // Where the groups' sequences begin, and the last one's end, so that steps [first, last) give each about as much to do.
  std::vector<int64_t> borders(int64_t first, int64_t last) const {
    std::vector<int64_t> all{0};
    const int64_t rows = offset(last) - offset(first);
    int64_t done = 0;
    for (int64_t r = 0, end = last; r < size(first); ++r) {
      while (size(end - 1) <= r) --end;
      const int64_t length = end - first;
      while ((2 * done + length) * groups_ >= 2 * rows * int64_t(all.size()) && int64_t(all.size()) < groups_) all.push_back(r);
      done += length;
    }
    all.resize(groups_, size(first));
    all.push_back(size(first));
    return all;
  }

  // work(part) for the rows of steps [first, last) and all units, all parts at the same time.
  template <class F> void teams(int64_t first, int64_t last, F work) {
    const std::vector<int64_t> rows = borders(first, last);
    const bool alone = p.steps * step_cycles() < 2 * kWaking;
    std::vector<std::unique_ptr<Team>> all;
    for (int64_t g = 0; g < groups_; ++g) all.emplace_back(new Team(int(team_)));
    auto run = [&](int64_t begin, int64_t end) {
      // A thread that got several numbers (nested calls, fewer threads than wanted) plays all these members at once.
      for (int64_t g = begin / team_; g * team_ < end && g < groups_; ++g) {
        const int64_t member = std::max(begin - g * team_, int64_t(0)), member_end = std::min(end - g * team_, team_);
        work(Part{*this, *all[g], int(member), int(member_end), g * team_ + member, rows[g], rows[g + 1],
                  units_.begin(member), units_.begin(member_end), outputs_.begin(member), outputs_.begin(member_end)});
      }
    };
    if (alone) run(0, groups_ * team_);
    else parallel(pool_, groups_ * team_, run);
  }

  // Rows of a block: at least one step, at most all, and about as many as fit a cache.
  int64_t block_rows() const { return std::max(p.batch, std::min(N, kCache / int64_t(sizeof(S) * G * U))); }

  // ---- Forward

  // The weights as the products want them, and b_ih + b_hh with each gate filled up to U; where zh stays apart its b_hh does.
  struct Operands {
    Buffer<W> weights;  // in one piece, which the backward gets for its dz
    W *const w_ih, *const w_hh, *const w_hr;
    Buffer<S> bias, apart;
    const bool joined;  // zx and zh in one product, step by step: where all weights fit a cache and tiles are full
    explicit Operands(const Layer& l)
        : weights(G * (Packed<W>::size(l.D, l.H) + Packed<W>::size(l.P, l.H)) + (l.p.projected ? Packed<W>::size(l.H, l.P) : 0)),
          w_ih(weights), w_hh(w_ih + G * Packed<W>::size(l.D, l.H)), w_hr(w_hh + G * Packed<W>::size(l.P, l.H)),
          bias(G * l.U), apart(l.U),
          joined(l.p.batch >= 4 * l.groups_ && kWeightBytes * G * l.U * (l.D + l.P) / l.team_ <= kCache / 4) {
      l.add_biases(bias, apart);
      l.pack(*this);
    }
  };

  void pack(const Operands& to) const {
    const int64_t packers = threads_for(G * H * (D + P) / 4);
    parallel(pool_, packers, [&](int64_t begin, int64_t end) {  // the panels in turn
      for (const Gates& some : products_)
        for (int64_t j = 0, i = 0; j < some.count * U; j += some.wide, ++i)
          if (i % packers >= begin && i % packers < end) {
            weight(to.w_ih, some, D).pack_transposed(j, D, rows_of(p.w_ih, some, D));
            weight(to.w_hh, some, P).pack_transposed(j, P, rows_of(p.w_hh, some, P));
          }
      if (p.projected && begin == 0)
        for (int64_t j = 0; j < P; j += outputs_.wide)
          projection(to.w_hr).pack_transposed(j, H, [&](int64_t o) -> typename Packed<W>::Source {
            return {pointer(p.w_hr) + o * H, int(std::min<int64_t>(L, std::max<int64_t>(0, P - o)))};
          });
    });
  }

  void add_biases(S* bias, S* apart) const {
    std::fill_n(bias, G * U, S(0));
    std::fill_n(apart, U, S(0));
    if (!p.b_ih) return;
    for (int g = 0; g < G; ++g)
      for (int64_t j = 0; j < H; ++j) {
        const bool is_apart = g >= G - C::kApart;
        bias[g * U + j] = pointer(p.b_ih)[g * H + j] + (is_apart ? S(0) : pointer(p.b_hh)[g * H + j]);
        if (is_apart) apart[j] = pointer(p.b_hh)[g * H + j];
      }
  }

  // Of each thread the rows that it works on; room for all before the loops, where a team must not fail.
  struct Indices {
    struct Index {
      std::vector<int64_t> rows;
      std::vector<const S*> h_before;
    };
    std::vector<Index> all;
    Indices(int64_t threads, int64_t most) : all(threads) {
      for (Index& index : all) index.rows.reserve(most), index.h_before.reserve(most);
    }
    Index& operator[](int64_t i) { return all[i]; }
  };

  // The rows of a block of steps that one part works on, by their place in the block.
  struct Rows {
    const Layer& l;
    std::vector<int64_t>& index;  // among all rows
    std::vector<const S*>& h_before;
    S* working;         // in the place of gates and candidate, where these are not kept
    int64_t first_row;  // of all that share `working`; -1: it is this part's alone
    Rows(const Layer& layer, typename Indices::Index& i, S* w, int64_t first = -1)
        : l(layer), index(i.rows), h_before(i.h_before), working(w), first_row(first) {}
    void clear() { index.clear(), h_before.clear(); }
    void add(int64_t t, const Part& part) {
      for (int64_t r = part.first; r < part.end(t); ++r) {
        index.push_back(l.offset(t) + r);
        h_before.push_back(l.before(t, r, l.p.h0, l.p.h, l.P));
      }
    }
    const S* x(int64_t k) const { return pointer(l.p.x) + index[k] * l.D; }
    S* h(int64_t k) const { return l.h(index[k]); }
    S* z(int64_t k) const {
      return l.p.gates ? l.gates(index[k]) : working + (first_row < 0 ? k : index[k] - first_row) * (G + C::kApart) * l.U;
    }
    S* zh(int64_t k) const { return l.p.gates ? l.candidate(index[k]) : z(k) + G * l.U; }
  };

  void project(const Rows& rows, const Part& part, const Operands& o) const {
    for (const Gates& some : products_)
      product(room(part.id), rows.index.size(), some.columns(part), [&](int64_t) { return o.bias + some.first * U; },
              [&](int64_t k) { return rows.z(k) + some.first * U; },
              times([&](int64_t k) { return rows.x(k); }, weight(o.w_ih, some, D)));
  }

  // What a replay finds: the gates; or these and c, of which a layer does not put out all steps.
  enum class Found { gates, gates_and_c };

  // The gates of steps [start, stop) of the walk from their known states.
  void replay(int64_t start, int64_t stop, const Rows& rows, const Part& part, const Operands& o, Found found) const {
    const int64_t count = rows.index.size();
    for (const Gates& some : products_) {
      const Columns columns = some.columns(part);
      auto z = [&](int64_t k) { return rows.z(k) + some.first * U; };
      auto bias = [&](int64_t) { return o.bias + some.first * U; };
      const Packed<W> w_ih = weight(o.w_ih, some, D), w_hh = weight(o.w_hh, some, P);
      const auto from_x = times([&](int64_t k) { return rows.x(k); }, w_ih);
      const auto from_h = times([&](int64_t k) { return rows.h_before[k]; }, w_hh);
      if (some.first >= G - C::kApart) {
        product(room(part.id), count, columns, bias, z, from_x);
        product(room(part.id), count, columns, [&](int64_t) { return o.apart.data; }, [&](int64_t k) { return rows.zh(k); }, from_h);
      } else {
        product(room(part.id), count, columns, bias, z, from_x, from_h);
      }
    }
    for (int64_t s = start, k = 0; s < stop; ++s)
      for (int64_t r = part.first, t = step_at(s); r < part.end(t); ++r, ++k)
        replay_pointwise(t, r, rows.z(k), rows.zh(k), part, found);
  }

  void replay_pointwise(int64_t t, int64_t r, S* z, const S* zh, const Part& part, Found found) const {
    const S* c_before = C::kStates == 2 ? before(t, r, p.c0, p.c, H) : nullptr;
    for (int64_t j = part.unit; j < part.unit_end; j += L) {
      const int n = j + L <= H ? L : int(H - j);
      Vec<S> gate[G];
      for (int g = 0; g < G; ++g) gate[g] = load(z + g * U + j);
      Step<S> s{};
      if (C::kStates == 2) s.c_before = load(c_before + j, n);
      if (C::kApart) s.extra = load(zh + j);
      C::forward(gate, s);
      for (int g = 0; g < G; ++g) store(z + g * U + j, gate[g]);
      if (C::kStates == 2 && found == Found::gates_and_c) store(c(offset(t) + r) + j, s.c, n);
    }
  }

  // Step t, whose rows begin at `done` in the block; how many these are.
  int64_t forward_step(int64_t t, const Rows& rows, int64_t done, const Part& part, const Operands& o, S* raw) const {
    const int64_t count = part.end(t) - part.first;
    if (count <= 0) return 0;
    const bool backwards = t % 2 == 1;
    for (size_t i = 0; i < products_.size(); ++i) {
      const Gates& some = products_[backwards ? products_.size() - 1 - i : i];
      const Columns columns = some.columns(part, backwards);
      auto z = [&](int64_t k) { return rows.z(done + k) + some.first * U; };
      auto bias = [&](int64_t) { return o.bias + some.first * U; };
      const Packed<W> w_ih = weight(o.w_ih, some, D), w_hh = weight(o.w_hh, some, P);
      const auto from_x = times([&](int64_t k) { return rows.x(done + k); }, w_ih);
      const auto from_h = times([&](int64_t k) { return before(t, part.first + k, p.h0, p.h, P); }, w_hh);
      if (some.first >= G - C::kApart) {
        if (o.joined) product(room(part.id), count, columns, bias, z, from_x);
        product(room(part.id), count, columns, [&](int64_t) { return o.apart.data; }, [&](int64_t k) { return rows.zh(done + k); }, from_h);
      } else if (o.joined) {
        product(room(part.id), count, columns, bias, z, from_x, from_h);
      } else {
        product(room(part.id), count, columns, z, z, from_h);
      }
    }
    for (int64_t k = 0; k < count; ++k) {
      const int64_t r = part.first + k;
      forward_pointwise(t, r, rows.z(done + k), rows.zh(done + k), part, p.projected ? raw + r * U : nullptr);
    }
    if (p.projected) {
      part.meet();
      product(room(part.id), count, {part.output, part.output_end}, Zero{zeros_}, [&](int64_t k) { return rows.h(done + k); },
              times([&](int64_t k) { return raw + (part.first + k) * U; }, projection(o.w_hr)));
    }
    part.meet();
    return count;
  }

  void forward_pointwise(int64_t t, int64_t r, S* z, const S* zh, const Part& part, S* raw) const {
    const int64_t row = offset(t) + r;
    const S* h_before = p.projected ? zeros_ : before(t, r, p.h0, p.h, P);
    const S* c_before = C::kStates == 2 ? before(t, r, p.c0, p.c, H) : nullptr;
    for (int64_t j = part.unit; j < part.unit_end; j += L) {
      const int n = j + L <= H ? L : int(H - j);
      Vec<S> gate[G];
      for (int g = 0; g < G; ++g) gate[g] = load(z + g * U + j);
      Step<S> s{};
      s.h_before = load(h_before + j, n);
      if (C::kStates == 2) s.c_before = load(c_before + j, n);
      if (C::kApart) s.extra = load(zh + j);
      C::forward(gate, s);
      if (p.gates)
        for (int g = 0; g < G; ++g) store(z + g * U + j, gate[g]);
      if (C::kStates == 2) store(c(row) + j, s.c, n);
      if (raw) store(raw + j, s.h);
      else store(h(row) + j, s.h, n);
    }
  }

  // The state after the sequence's last step.
  void copy_last(int64_t r, const Part& part) const {
    int64_t t = p.reverse ? 0 : p.steps - 1;
    while (size(t) <= r) --t;
    const int64_t row = offset(t) + r;
    std::copy(h(row) + part.output, h(row) + part.output_end, static_cast<S*>(p.h_last) + r * P + part.output);
    const int64_t unit = std::min(part.unit, H), unit_end = std::min(part.unit_end, H);
    if (C::kStates == 2) std::copy(c(row) + unit, c(row) + unit_end, static_cast<S*>(p.c_last) + r * H + unit);
  }

  // ---- Backward

  static void copy_state(S* to, const void* from, int64_t r, int64_t width) {
    std::fill_n(to, whole<S>(width), S(0));
    if (from) std::copy_n(pointer(from) + r * width, width, to);
  }

  void backward_step(int64_t t, const Part& part, Block& block, const Packed<W>& back, const Packed<W>& to_raw) const {
    const int64_t count = part.end(t) - part.first;
    const int64_t start = offset(t) - block.first_row + part.first;  // of our rows, in the block
    const int64_t Pw = whole<S>(P);
    if (p.projected) {
      for (int64_t k = 0; k < count; ++k)
        for (int64_t j = part.output; j < part.output_end; ++j)
          block.dh_projected[(start + k) * Pw + j] =
              block.dh[(part.first + k) * Pw + j] + (p.d_h ? pointer(p.d_h)[(block.first_row + start + k) * P + j] : S(0));
      if (p.delta_h)
        for (int64_t k = 0; k < count; ++k)
          std::copy(block.dh_projected + (start + k) * Pw + part.output, block.dh_projected + (start + k) * Pw + part.output_end,
                    static_cast<S*>(p.delta_h) + (block.first_row + start + k) * P + part.output);
      part.meet();
      product(room(part.id), count, {part.unit, part.unit_end}, Zero{zeros_}, [&](int64_t k) { return block.d_raw + (part.first + k) * U; },
              times([&](int64_t k) { return block.dh_projected + (start + k) * Pw; }, to_raw.filled_up()));
    }
    for (int64_t k = 0; k < count; ++k) backward_pointwise(t, part.first + k, start + k, part, block);
    part.meet();
    auto dh = [&](int64_t k) { return block.dh + (part.first + k) * Pw; };
    auto direct = [&](int64_t k) -> const S* { return C::kApart ? dh(k) : zeros_.data; };
    product(room(part.id), count, {part.output, part.output_end, t % 2 == 1}, direct, dh,
            times([&](int64_t k) { return block.dz_hidden() + (start + k) * G * U; }, back));
    if (!p.cut) return;
    for (int64_t r = part.first; r < part.first + count; ++r)
      if (p.cut[offset(t) + r]) {
        std::fill(block.dh + r * Pw + part.output, block.dh + r * Pw + part.output_end, S(0));
        if (C::kStates == 2) std::fill(block.dc + r * U + part.unit, block.dc + r * U + part.unit_end, S(0));
      }
  }

  void backward_pointwise(int64_t t, int64_t r, int64_t in_block, const Part& part, Block& block) const {
    const int64_t row = offset(t) + r;
    const S* h_before = before(t, r, p.h0, p.h, P);
    const S* c_before = C::kStates == 2 ? before(t, r, p.c0, p.c, H) : nullptr;
    const S* from_above = p.projected || !p.d_h ? nullptr : pointer(p.d_h) + row * P;
    const S* kept = p.gates ? gates(row) : block.gates + (row - block.first_row) * (G + C::kApart) * U;
    const S* zh = p.gates ? candidate(row) : kept + G * U;
    S *dz = block.dz + in_block * G * U, *dz_hidden = block.dz_hidden() + in_block * G * U;
    S *dh = p.projected ? block.d_raw + r * U : block.dh + r * U, *dc = block.dc + r * U;
    if (part.member == 0) block.h_before[in_block] = h_before;
    for (int64_t j = part.unit; j < part.unit_end; j += L) {
      const int n = j + L <= H ? L : int(H - j);
      Vec<S> gate[G];
      if (G > 1)
        for (int g = 0; g < G; ++g) gate[g] = load(kept + g * U + j);
      Step<S> s{};
      s.dh = load(dh + j);
      if (from_above) s.dh += load(from_above + j, n);
      if (p.delta_h && !p.projected) store(static_cast<S*>(p.delta_h) + row * P + j, s.dh, n);
      if (!p.projected) {
        s.h = load(h(row) + j, n);
        s.h_before = load(h_before + j, n);
      }
      if (C::kStates == 2) {
        s.c_before = load(c_before + j, n);
        s.c = load(c(row) + j, n);
        s.dc = load(dc + j);
        if (p.delta_c) store(static_cast<S*>(p.delta_c) + row * H + j, s.dc, n);
      }
      if (C::kApart) s.extra = load(zh + j);
      C::backward(gate, s);
      if (n < L) {  // where there is no unit, inf * 0 may have left a NaN, which no weight of 0 would stop
        for (int g = 0; g < G; ++g) gate[g] = first_lanes<S>(gate[g], n);
        s.dz_apart = first_lanes<S>(s.dz_apart, n), s.dh_direct = first_lanes<S>(s.dh_direct, n), s.dc = first_lanes<S>(s.dc, n);
      }
      for (int g = 0; g < G; ++g) store(dz + g * U + j, gate[g]);
      if (C::kApart) {
        for (int g = 0; g < G - 1; ++g) store(dz_hidden + g * U + j, gate[g]);
        store(dz_hidden + (G - 1) * U + j, s.dz_apart);
        store(dh + j, s.dh_direct);
      }
      if (C::kStates == 2) store(dc + j, s.dc);
      if (p.projected) store(block.raw + in_block * U + j, s.h);
    }
  }

  // ---- Gradients of the weights and inputs, from the dz of a block's rows

  void products_of_all_rows(Block& block, const Packed<W>& to_x) const {
    for (int64_t row = 0; p.d_w_ih && row < block.rows; row += kGroupRows)
      add_rows(block, row, std::min(block.rows - row, kGroupRows));
    if (!p.d_x) return;
    const int64_t R = block.rows, threads = threads_for(R * G * U * D / L);
    parallel(pool_, threads, [&](int64_t begin, int64_t end) {
      const int64_t n = R * begin / threads;
      product(room(begin), R * end / threads - n, {0, D}, Zero{zeros_},
              [&](int64_t k) { return static_cast<S*>(p.d_x) + (block.first_row + n + k) * D; },
              times([&](int64_t k) { return block.dz + (n + k) * G * U; }, to_x));
    });
  }

  // What `count` rows of a block, from `row` on, add to the weight gradients.
  void add_rows(Block& block, int64_t row, int64_t count) const {
    if (block.wide && block.summed + count > kGroupRows && block.summed) widen(block, false);
    const int64_t rows = G * H, threads = threads_for(count * G * U * (D + P) / L);
    const int64_t each = (rows + threads * kTileRows - 1) / (threads * kTileRows) * kTileRows;
    parallel(pool_, threads, [&](int64_t begin, int64_t end) {
      parts(std::min(end * each, rows) - begin * each, kTogether, [&](int64_t q, int64_t some) {
        weight_gradients(block, row, count, begin * each + q, begin * each + q + some);
      });
    });
    block.begins = false;
    block.summed += count;
  }

  // Of rows [first, last) of the weights, from the R rows of the block that begin at `row`; and, with the first, of the projection.
  void weight_gradients(const Block& block, int64_t row, int64_t R, int64_t first, int64_t last) const {
    const auto [w_ih, w_hh, b_ih, b_hh, w_hr] = sums();
    const S *dz = block.dz + row * G * U, *dz_hidden = block.dz_hidden() + row * G * U;
    auto column = [&](int64_t q) { return q / H * U + q % H; };  // of row q of the weights, in dz
    auto x_row = [&](int64_t n) { return pointer(p.x) + (block.first_row + row + n) * D; };
    auto h_row = [&](int64_t n) { return block.h_before[row + n]; };
    Buffer<W> left(depth<W>(R) * (last - first)), panel(Packed<W>::size(R, kTileVectors * L));
    interleave(dz, G * U, R, first, last, column, left);
    outer(left, R, first, last, panel, x_row, w_ih, block.begins);
    if (b_ih.total) sum_rows(dz, R, first, last, column, b_ih.total, block.begins);
    if (C::kApart) interleave(dz_hidden, G * U, R, first, last, column, left);
    outer(left, R, first, last, panel, h_row, w_hh, block.begins);
    if (b_hh.total && (C::kApart || !b_ih.total)) sum_rows(dz_hidden, R, first, last, column, b_hh.total, block.begins);
    if (p.projected && first == 0) {
      Buffer<W> projected(depth<W>(R) * P);
      interleave(block.dh_projected + row * whole<S>(P), whole<S>(P), R, 0, P, [](int64_t q) { return q; }, projected);
      outer(projected, R, 0, P, panel, [&](int64_t n) { return block.raw + (row + n) * U; }, w_hr, block.begins);
    }
  }

  // Some columns of a matrix, row after row as `multiply` takes them interleaved.
  struct Tile {
    W* to;
    int columns;
    const S* start[kTileRows];  // of each column
    bool adjacent() const { return columns == kTileRows && start[columns - 1] == start[0] + columns - 1; }
    // The numbers `row` behind the starts and, where elements are pairs, those at `next`, if there are any.
    void take(int64_t row, int64_t next, bool has_next) {
      if (adjacent() && kPer<W> == 1) std::memcpy(to, start[0] + row, sizeof(W) * kTileRows);
      else if (adjacent() && has_next) store(to, join<W>(load(start[0] + row, kTileRows), load(start[0] + next, kTileRows)), kTileRows);
      else for (int i = 0; i < columns; ++i) to[i] = join<W>(start[i][row], has_next ? start[i][next] : S(0));
      to += columns;
    }
  };

  // Columns column(q) of rows `stride` apart, for q in [first, last): tile by tile [depth(R)][rows of the tile]. Several tiles
  // at a time, so that they share the cache lines of a row.
  template <class F>
  static void interleave(const S* from, int64_t stride, int64_t R, int64_t first, int64_t last, F column, W* to) {
    constexpr int most = 8;
    Tile some[most];
    int count = 0;
    tiles(last - first, [&](int64_t q, int m) {
      Tile& tile = some[count++] = {to + q * depth<W>(R), m, {}};
      for (int i = 0; i < m; ++i) tile.start[i] = from + column(first + q + i);
      if (count < most && q + m < last - first) return;
      for (int64_t n = 0; n < R; n += kPer<W>)
        for (int i = 0; i < count; ++i) some[i].take(n * stride, (n + 1) * stride, n + 1 < R);
      count = 0;
    });
  }

  // to[q][f] (+)= sum_n left[n][q] features(n)[f] for rows q in [first, last) of a weight, n in [0, R), part by part.
  template <class F>
  void outer(const W* left, int64_t R, int64_t first, int64_t last, W* buffer, F features, const Sum& to, bool begins) const {
    if (!to.total) return;
    for (int64_t f = 0; f < to.width; f += kTileVectors * L) {
      const int64_t wide = std::min<int64_t>(to.width - f, kTileVectors * L);
      const Packed<W> panel{buffer, R, wide, kTileVectors * L};
      panel.pack_rows(0, 0, R, [&](int64_t n) { return features(n) + f; });
      const int vectors = panel.vectors(0), n = int(wide - (vectors - 1) * L);
      tiles(last - first, [&](int64_t q, int m) {
        const auto multiply = multiply_for<W, Left::interleaved>(m, vectors);
        const S* start[kTileRows];
        S* target[kTileRows];
        for (int i = 0; i < m; ++i) {
          target[i] = to.total + (first + q + i) * to.width + f;
          start[i] = begins ? zeros_ : target[i];
        }
        for (int64_t k = 0; k < R; k += kPartRows) {
          const W* row[1] = {left + q * depth<W>(R) + depth<W>(k) * m};
          const Term<W> term{row, depth<W>(std::min(R - k, kPartRows)), buffer + depth<W>(k) * vectors * L};
          multiply(&term, 1, start, target, n);
          for (int i = 0; i < m; ++i) start[i] = target[i];
        }
      });
    }
  }

  template <class F>
  void sum_rows(const S* dz, int64_t R, int64_t first, int64_t last, F column, S* to, bool begins) const {
    for (int64_t q = first; q < last;) {
      const int n = int(std::min({last - q, H - q % H, int64_t(L)}));  // up to the end of the gate
      Vec<S> all = begins ? Vec<S>{} : load(to + q, n);
      for (int64_t k = 0; k < R; k += kPartRows) {
        const int64_t end = std::min(R, k + kPartRows);
        Vec<S> part{};
        for (int64_t few = k; few < end; few += kBiasRows) {
          Vec<S> sum{};
          for (int64_t i = few; i < std::min(end, few + kBiasRows); ++i) sum += load(dz + i * G * U + column(q), n);
          part += sum;
        }
        all += part;
      }
      store(to + q, all, n);
      q += n;
    }
  }
};

// One entry for each (cell, number format).
typedef void (*Run)(const bptt_problem&, bptt_parallel_for, bool backward);
template <class S, class W, class C> void run(const bptt_problem& p, bptt_parallel_for pool, bool backward) {
  Layer<S, C, W> layer(p, pool);
  if (backward) layer.backward();
  else layer.forward();
}
template <class S, class W = S> Run find(int64_t cell) {
  switch (cell) {
    case 0: return run<S, W, Elman<S, 0>>;
    case 1: return run<S, W, Elman<S, 1>>;
    case 2: return run<S, W, Elman<S, 2>>;
    case 3: return run<S, W, Gru<S>>;
    case 4: return run<S, W, Lstm<S>>;
  }
  return nullptr;
}

}}  // namespace bptt::BPTT_ISA
