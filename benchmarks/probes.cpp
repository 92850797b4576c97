// How fast can this machine go at all? Ceilings that kernels are compared with: one figure per call.
//
//   probes fma THREADS SECONDS        fp32 multiply-add, flop/s
//   probes bf16 THREADS SECONDS       bf16 dot into fp32, flop/s (0 where the processor has none)
//   probes gather THREADS SECONDS     random 8-byte reads per second from a 4 MiB table (a hash level of 2^19 x 2 fp32)
//   probes read|update THREADS SECONDS   DRAM bytes/s: reading 512 MiB; y += k x over 2 x 256 MiB
//
// Built with -march=native. Inner loops are inline assembly where compilers are known to spoil them (register
// allocation of 24 accumulators), vector extensions elsewhere.
#include <omp.h>
#include <sys/mman.h>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

static double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Memory on huge pages where the system grants them, as the tables of the product are.
static void* huge_alloc(size_t bytes) {
  const size_t page = size_t(2) << 20;
  void* raw = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) {
    std::perror("mmap");
    std::exit(1);
  }
  void* p = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(raw) + page - 1) & ~uintptr_t(page - 1));
#ifdef MADV_HUGEPAGE
  madvise(p, bytes, MADV_HUGEPAGE);
#endif
  std::memset(p, 0, bytes);
  return p;
}

// Runs `block` (which returns the work it did) in every thread for the given time; total work per second.
template <class Block> static double rate(int threads, double seconds, Block block) {
  double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    auto local = block(omp_get_thread_num());
#pragma omp barrier
    const double start = now();
    double work = 0, elapsed;
    do {
      work += local();
      elapsed = now() - start;
    } while (elapsed < seconds);
    total += work / elapsed;
  }
  return total;
}

// clang-format off
#define EACH24(F)                                                                                                 \
  F(0)                                                                                                            \
  F(1)                                                                                                            \
  F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19) F(20) F(21) \
      F(22) F(23)
// clang-format on
#define CLOBBER24                                                                                                     \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", \
      "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm30", "zmm31"
#define FMA512(n) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #n "\n"
#define DOT512(n) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #n "\n"

static double fma_block() {
#if defined(__AVX512F__)
  for (int k = 0; k < 4000; k++)
    asm volatile(
        "vpxord %%zmm30, %%zmm30, %%zmm30\n"
        "vpxord %%zmm31, %%zmm31, %%zmm31\n" EACH24(FMA512)::
            : CLOBBER24);
  return 4000.0 * 24 * 32;
#else
#if defined(__AVX__)
  constexpr int kLanes = 8;
#else
  constexpr int kLanes = 4;
#endif
  typedef float Vector __attribute__((vector_size(kLanes * 4)));
  constexpr int kChains = 12;  // latency 4, 2 units: 8 suffice; 16 registers hold 12 and two operands
  Vector a[kChains], b, c;
  for (int i = 0; i < kLanes; i++) b[i] = 0.9999f, c[i] = 1e-4f;
  for (int i = 0; i < kChains; i++) a[i] = c;
  for (int k = 0; k < 4000; k++) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; i++) a[i] = a[i] * b + c;
#pragma GCC unroll 12
    for (int i = 0; i < kChains; i++) asm volatile("" : "+x"(a[i]));
  }
  return 4000.0 * kChains * kLanes * 2;
#endif
}

static double bf16_block() {
#if defined(__AVX512BF16__)
  for (int k = 0; k < 4000; k++)
    asm volatile(
        "vpxord %%zmm30, %%zmm30, %%zmm30\n"
        "vpxord %%zmm31, %%zmm31, %%zmm31\n" EACH24(DOT512)::
            : CLOBBER24);
  return 4000.0 * 24 * 64;
#else
  return 0;
#endif
}

static volatile uint64_t sink;

// Sixteen generators advance side by side, so that address arithmetic never limits the loads.
struct Generator {
  alignas(64) uint32_t state[16];
  explicit Generator(int seed) {
    for (int i = 0; i < 16; i++) state[i] = (i + 1) * 2654435761u + seed * 977u;
  }
  void next(uint32_t* index, uint32_t mask) {
    for (int i = 0; i < 16; i++) {
      state[i] = state[i] * 1664525u + 1013904223u;
      index[i] = ((state[i] >> 7) ^ (state[i] >> 20)) & mask;
    }
  }
};

static double gather_scalar(const uint64_t* table, uint32_t mask, Generator& g) {
  uint64_t sum = 0;
  alignas(64) uint32_t index[16];
  for (int k = 0; k < 20000; k++) {
    g.next(index, mask);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) sum += table[index[i]];
  }
  sink = sum;
  return 20000.0 * 16;
}

static double gather_vector(const uint64_t* table, uint32_t mask, Generator& g) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  __m512i v = _mm512_load_si512(g.state);
  const __m512i mul = _mm512_set1_epi32(1664525), add = _mm512_set1_epi32(1013904223), mk = _mm512_set1_epi32(mask);
  __m512d sum = _mm512_setzero_pd();
  for (int k = 0; k < 20000; k++) {
    v = _mm512_add_epi32(_mm512_mullo_epi32(v, mul), add);
    const __m512i i = _mm512_and_si512(_mm512_xor_si512(_mm512_srli_epi32(v, 7), _mm512_srli_epi32(v, 20)), mk);
    sum = _mm512_add_pd(sum, _mm512_i32gather_pd(_mm512_castsi512_si256(i), table, 8));
    sum = _mm512_add_pd(sum, _mm512_i32gather_pd(_mm512_extracti64x4_epi64(i, 1), table, 8));
  }
  _mm512_store_si512(g.state, v);
  sink = uint64_t(_mm512_reduce_add_pd(sum));
  return 20000.0 * 16;
#elif defined(__AVX2__)
  alignas(64) uint32_t index[16];
  __m256d sum = _mm256_setzero_pd();
  for (int k = 0; k < 20000; k++) {
    g.next(index, mask);
    for (int i = 0; i < 16; i += 4) {
      const __m128i four = _mm_load_si128(reinterpret_cast<const __m128i*>(index + i));
      sum = _mm256_add_pd(sum, _mm256_i32gather_pd(reinterpret_cast<const double*>(table), four, 8));
    }
  }
  sink = uint64_t(sum[0] + sum[1] + sum[2] + sum[3]);
  return 20000.0 * 16;
#else
  return gather_scalar(table, mask, g);
#endif
}

static double gather(int threads, double seconds) {
  const size_t bytes = size_t(4) << 20;
  const uint64_t* table = static_cast<uint64_t*>(huge_alloc(bytes));
  const uint32_t mask = bytes / 8 - 1;
  const double vector = rate(threads, seconds / 2, [&](int thread) {
    return [=, g = Generator(thread)]() mutable { return gather_vector(table, mask, g); };
  });
  const double scalar = rate(threads, seconds / 2, [&](int thread) {
    return [=, g = Generator(thread)]() mutable { return gather_scalar(table, mask, g); };
  });
  return vector > scalar ? vector : scalar;
}

#if defined(__AVX512F__)
constexpr int kWide = 16;
#elif defined(__AVX__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif
typedef float Wide __attribute__((vector_size(kWide * 4)));

static double memory(bool update, int threads, double seconds) {
  const size_t count = (size_t(256) << 20) / sizeof(Wide);
  Wide* x = static_cast<Wide*>(huge_alloc(count * sizeof(Wide)));
  Wide* y = static_cast<Wide*>(huge_alloc(count * sizeof(Wide)));
  double best = 0;
  const double start = now();
  do {
    const double begin = now();
#pragma omp parallel num_threads(threads)
    {
      const size_t t = omp_get_thread_num(), low = count / threads * t, high = low + count / threads;
      if (update) {
        for (size_t i = low; i < high; i++) y[i] += x[i] * 3.0f;
      } else {
        Wide a = x[low], b = a, c = a, d = a;
        for (size_t i = low; i + 4 <= high; i += 4) {
          a += x[i] + y[i], b += x[i + 1] + y[i + 1];
          c += x[i + 2] + y[i + 2], d += x[i + 3] + y[i + 3];
        }
        a += b + c + d;
        sink = uint64_t(a[0]);
      }
    }
    const double bytes = double(count) * sizeof(Wide) * (update ? 3 : 2);
    const double speed = bytes / (now() - begin);
    best = speed > best ? speed : best;
  } while (now() - start < seconds);
  return best;
}

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: probes fma|bf16|gather|read|update THREADS SECONDS\n");
    return 2;
  }
  const char* kind = argv[1];
  const int threads = std::atoi(argv[2]);
  const double seconds = std::atof(argv[3]);
  double figure = 0;
  if (!std::strcmp(kind, "fma")) {
    figure = rate(threads, seconds, [](int) { return fma_block; });
  } else if (!std::strcmp(kind, "bf16")) {
#if defined(__AVX512BF16__)
    figure = rate(threads, seconds, [](int) { return bf16_block; });
#else
    (void)bf16_block;
#endif
  } else if (!std::strcmp(kind, "gather")) {
    figure = gather(threads, seconds);
  } else if (!std::strcmp(kind, "read") || !std::strcmp(kind, "update")) {
    figure = memory(kind[0] == 'u', threads, seconds);
  } else {
    std::fprintf(stderr, "unknown probe %s\n", kind);
    return 2;
  }
  std::printf("%.6g\n", figure);
}
