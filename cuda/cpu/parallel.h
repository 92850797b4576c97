// One way to use several cores: tasks handed out one by one. Results never depend on the thread count, because a task
// writes only its own part; sums over tasks are reduced afterwards in task order.
#pragma once
#include <cstdlib>

#include "api.h"
#include "huge_pages.h"
#if !defined(_OPENMP)
#include <atomic>
#include <thread>
#include <vector>
#endif

namespace polyfield {

// Calls body(task) for task in [0, tasks). With one thread no parallel region is opened, which is what keeps forked
// DataLoader workers alive: an OpenMP region in a child of a process that has used OpenMP hangs.
template <class Body> void parallel_for(i64 threads, i64 tasks, const Body& body) {
  if (threads <= 1 || tasks <= 1) {
    for (i64 task = 0; task < tasks; ++task) body(task);
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(int(threads < tasks ? threads : tasks))
  for (i64 task = 0; task < tasks; ++task) body(task);
#else
  std::atomic<i64> next{0};
  auto work = [&] {
    for (i64 task; (task = next.fetch_add(1)) < tasks;) body(task);
  };
  std::vector<std::thread> pool;
  for (i64 k = 1; k < threads && k < tasks; ++k) pool.emplace_back(work);
  work();
  for (auto& thread : pool) thread.join();
#endif
}

// Splits `count` items into chunks of at most `chunk` and calls body(begin, end).
template <class Body> void parallel_chunks(i64 threads, i64 count, i64 chunk, const Body& body) {
  parallel_for(threads, (count + chunk - 1) / chunk, [&](i64 task) {
    const i64 begin = task * chunk;
    body(begin, begin + chunk < count ? begin + chunk : count);
  });
}

// A growing 64-byte aligned buffer; make it `thread_local static` for per-thread scratch. Contents are undefined after
// growth.
template <class T> struct Scratch {
  T* data = nullptr;
  i64 capacity = 0;
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data); }
  T* reserve(i64 count) {
    if (count > capacity) {
      std::free(data);
      capacity = count + count / 4 + 64;
      const i64 needed = capacity * i64(sizeof(T)), page = needed >= 4 * kHugePage ? kHugePage : 64;
      data = static_cast<T*>(std::aligned_alloc(page, (needed + page - 1) / page * page));
      if (page == kHugePage) advise_huge_pages(data, needed);
    }
    return data;
  }
};

}  // namespace polyfield
