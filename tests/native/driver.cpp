// Runs the native core on stored cases, where there is no torch: on another processor, or an emulated one.
//
//   g++ -std=c++17 -Isrc/bptt/kernels/csrc tests/native/driver.cpp LIBRARY -o driver
//   ./driver tests/native/cases.txt
//
// Each case (make_cases.py describes the file) runs forward and backward in float64 and float32, with the gates kept
// and not, on one thread and divided among three. Prints the instruction set and, for each format, the worst relative
// error in norm; exits with 1 if one is above its bound, or not a number.
#include "problem.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

using Tensors = std::map<std::string, std::vector<double>>;

struct Case {
  std::string name;
  bptt_problem sizes{};  // without its tensors
  Tensors tensors;
};

bool read(std::istream& file, Case& next) {
  std::string word;
  if (!(file >> word)) return false;
  next = Case{};
  bptt_problem& p = next.sizes;
  file >> next.name >> p.cell >> p.steps >> p.batch >> p.inputs >> p.hidden >> p.projected >> p.reverse;
  while (file >> word && word != "end") {
    size_t count;
    file >> count;
    std::vector<double>& values = next.tensors[word];
    values.resize(count);
    for (double& value : values) file >> value;
  }
  return word == "end" && file;
}

// A pool of one thread: each call does all the work.
int serial(int64_t begin, int64_t end, int64_t, void (*work)(int64_t, int64_t, void*), void* context) {
  if (begin < end) work(begin, end, context);
  return 0;
}

// One case in the number format S, with the tensors that it reads and writes.
template <class S> class Run {
 public:
  Run(const Case& c, bool keeps_gates, int64_t threads) : case_(c), p(c.sizes) {
    p.format = sizeof(S) == 8;
    p.threads = threads;
    static const int gates_of_cell[] = {1, 1, 1, 3, 4};
    const int64_t G = gates_of_cell[p.cell], P = p.projected ? p.projected : p.hidden;
    const int64_t N = int64_t(c.tensors.at("x").size()) / p.inputs, U = bptt_units(p.hidden, sizeof(S) == 8);
    for (double o : values("offsets")) offsets_.push_back(int64_t(o));
    for (double r : values("reset")) reset_.push_back(r != 0);
    p.offsets = offsets_.empty() ? nullptr : offsets_.data();
    p.reset = reset_.empty() ? nullptr : reset_.data();
    p.x = input("x"), p.w_ih = input("w_ih"), p.w_hh = input("w_hh"), p.b_ih = input("b_ih"), p.b_hh = input("b_hh");
    p.w_hr = input("w_hr"), p.h0 = input("h0"), p.c0 = input("c0");
    p.h = output("h", N * P), p.h_last = output("h_last", p.batch * P);
    if (p.cell == 4) p.c = output("c", N * p.hidden), p.c_last = output("c_last", p.batch * p.hidden);
    if (keeps_gates && G > 1) p.gates = output("gates", N * G * U);
    if (keeps_gates && G == 3) p.candidate = output("candidate", N * U);
    p.d_h = input("d_h"), p.d_h_last = input("d_h_last"), p.d_c_last = input("d_c_last");
    p.d_x = gradient("x"), p.d_h0 = gradient("h0"), p.d_c0 = gradient("c0"), p.d_w_ih = gradient("w_ih");
    p.d_w_hh = gradient("w_hh"), p.d_b_ih = gradient("b_ih"), p.d_b_hh = gradient("b_hh"), p.d_w_hr = gradient("w_hr");
  }

  // The worst relative error of all results; infinite where the core refused, or a result is not a number.
  double worst_error() {
    if (bptt_run(&p, 0, serial) || bptt_run(&p, 1, serial)) return INFINITY;
    double worst = 0;
    for (const auto& [name, wanted] : case_.tensors) {
      const auto found = outputs_.find(name);
      if (found == outputs_.end()) continue;
      double error = 0, norm = 0;
      for (size_t i = 0; i < wanted.size(); ++i) {
        const double difference = double(found->second[i]) - wanted[i];
        error += difference * difference;
        norm += wanted[i] * wanted[i];
      }
      const double relative = std::sqrt(error) / std::max(1., std::sqrt(norm));
      worst = relative <= worst ? worst : relative > worst ? relative : INFINITY;
    }
    return worst;
  }

 private:
  const Case& case_;
  bptt_problem p;
  std::vector<int64_t> offsets_;
  std::vector<uint8_t> reset_;
  std::map<std::string, std::vector<S>> inputs_, outputs_;

  std::vector<double> values(const std::string& name) const {
    const auto found = case_.tensors.find(name);
    return found == case_.tensors.end() ? std::vector<double>{} : found->second;
  }
  // Null where the case has none.
  const S* input(const std::string& name) {
    const std::vector<double> from = values(name);
    if (from.empty()) return nullptr;
    return (inputs_[name] = std::vector<S>(from.begin(), from.end())).data();
  }
  S* output(const std::string& name, int64_t count) { return (outputs_[name] = std::vector<S>(count, S(NAN))).data(); }
  S* gradient(const std::string& of) {
    const std::vector<double> like = values(of);
    return like.empty() ? nullptr : output("d_" + of, int64_t(like.size()));
  }
};

template <class S> double worst_of(const Case& c) {
  double worst = 0;
  for (bool keeps_gates : {true, false})
    for (int64_t threads : {1, 3}) worst = std::max(worst, Run<S>(c, keeps_gates, threads).worst_error());
  return worst;
}

}  // namespace

int main(int count, char** arguments) {
  std::ifstream file(count == 2 ? arguments[1] : "");
  if (!file) return std::fprintf(stderr, "usage: driver cases.txt\n"), 2;
  if (bptt_problem_size() != sizeof(bptt_problem)) return std::fprintf(stderr, "this core is of another version\n"), 2;
  double worst_double = 0, worst_float = 0;
  int cases = 0;
  for (Case next; read(file, next); ++cases) {
    const double in_double = worst_of<double>(next), in_float = worst_of<float>(next);
    if (!(in_double <= 1e-10) || !(in_float <= 1e-5))
      std::printf("%s: float64 %.2g, float32 %.2g\n", next.name.c_str(), in_double, in_float);
    worst_double = std::max(worst_double, in_double);
    worst_float = std::max(worst_float, in_float);
  }
  std::printf("%s: %d cases, worst error float64 %.2g, float32 %.2g\n", bptt_isa(), cases, worst_double, worst_float);
  return cases && worst_double <= 1e-10 && worst_float <= 1e-5 ? 0 : 1;
}
