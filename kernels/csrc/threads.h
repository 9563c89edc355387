// Running one function over many records on a few threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace ecgfast {

// Calls work(i) for every i in [0, n), on the calling thread and up to num_threads - 1 others.
// Where no more threads can be had, those that started do the work.
template <class Work>
void for_each_record(int64_t n, int32_t num_threads, Work work) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t i = next++; i < n; i = next++) work(i);
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < num_threads && t < n; ++t) {
    try {
      others.emplace_back(run);
    } catch (const std::system_error&) {
      break;
    }
  }
  run();
  for (std::thread& other : others) other.join();
}

}  // namespace ecgfast
