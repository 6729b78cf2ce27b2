/* Kernels for all element types and combines, compiled for several sets of instructions and chosen at run time. */
#include "kernels.h"

#include <stdint.h>
#include <string.h>

typedef struct {
    const char *dtype, *combine;
    Combine function;
} Kernel;

#define FUSE(a, b, c) (sizeof(a) == 4 ? (double)__builtin_fmaf(a, b, c) : __builtin_fma(a, b, c))

enum { BLOCK_BYTES = 32768, WIDEST = 256, FAR_BYTES = 65536, AHEAD = 2048, LINE = 64 };

/* Have this many bytes fetched, some way ahead of p; beyond the end of memory nothing happens. */
#define FETCH(p, bytes)                                                                                              \
    do {                                                                                                             \
        __builtin_prefetch((p) + AHEAD);                                                                             \
        if ((bytes) > LINE) __builtin_prefetch((p) + AHEAD + LINE);                                                  \
    } while (0)

/* What is left after the last full span: done in padded copies, so that it needs no code of its own. */
static void combine_rest(Combine combine, size_t span, char *const *to, int tos, const char *const *from, int froms,
                         size_t at, size_t bytes) {
    char sum[WIDEST] = {0}, next[WIDEST] = {0};
    char *const out[] = {sum};
    const char *const pair[] = {sum, next};
    memcpy(sum, from[0] + at, bytes);
    for (int s = 1; s < froms; s++) {
        memcpy(next, from[s] + at, bytes);
        combine(out, 1, pair, 2, span);
    }
    for (int s = 0; s < tos; s++) memcpy(to[s] + at, sum, bytes);
}

#ifdef __aarch64__
static inline float wide_half(uint16_t half) {
    __fp16 h;
    memcpy(&h, &half, 2);
    return h;
}
static inline uint16_t narrow_half(float value) {
    __fp16 h = value;
    uint16_t half;
    memcpy(&half, &h, 2);
    return half;
}
#else
static float wide_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7FFF, bits;
    float value;
    if (rest >= 0x7C00) /* infinity and NaN */
        bits = sign | 0x7F800000 | (rest & 0x3FF) << 13 | (rest > 0x7C00 ? 0x400000 : 0);
    else if (rest >= 0x400)
        bits = sign | ((rest << 13) + (112u << 23));
    else { /* below the least normal number: an integer times 2^-24 */
        value = (float)rest * 0x1p-24f;
        memcpy(&bits, &value, 4);
        bits |= sign;
    }
    memcpy(&value, &bits, 4);
    return value;
}
static uint16_t narrow_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return sign | 0x7E00 | (uint16_t)(bits >> 13 & 0x3FF);
    if (bits >= 0x477FF000) return sign | 0x7C00; /* rounds beyond the greatest half */
    if (bits < 0x38800000) {                      /* below the least normal half: let the sum round */
        float small;
        memcpy(&small, &bits, 4);
        small += 0.5f;
        memcpy(&bits, &small, 4);
        return sign | (uint16_t)(bits - 0x3F000000);
    }
    return sign | (uint16_t)((bits + 0xFFF + (bits >> 13 & 1) - (112u << 23)) >> 13);
}
#endif

/* Element by element, through the two functions above. */
typedef uint16_t generic_halves __attribute__((vector_size(8), aligned(1), may_alias));
typedef float generic_floats __attribute__((vector_size(16), aligned(1), may_alias));
static inline generic_floats wide_halves(generic_halves h) {
    return (generic_floats){wide_half(h[0]), wide_half(h[1]), wide_half(h[2]), wide_half(h[3])};
}
static inline generic_halves narrow_halves(generic_floats v) {
    return (generic_halves){narrow_half(v[0]), narrow_half(v[1]), narrow_half(v[2]), narrow_half(v[3])};
}

#define NAME(x) generic_##x
#define TARGET
#define VBYTES 16
#define HALF_TO_FLOAT(v) wide_halves(v)
#define FLOAT_TO_HALF(v) narrow_halves(v)
#ifdef __aarch64__
#define FUSED(a, b, c) FUSE(a, b, c)
#else
#define FUSED(a, b, c) ((a) * (b) + (c))
#endif
#include "kernels_body.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define X86_SETS 1
#include <immintrin.h>

#define NAME(x) avx2_##x
#define TARGET __attribute__((target("avx2,f16c,fma")))
#define VBYTES 32
#define STREAM(p, v) _mm256_stream_si256((__m256i *)(void *)(p), (__m256i)(v))
#define HALF_TO_FLOAT(v) ((avx2_f32)_mm256_cvtph_ps((__m128i)(v)))
#define FUSED(a, b, c) FUSE(a, b, c)
#define FLOAT_TO_HALF(v) ((avx2_half)_mm256_cvtps_ph((__m256)(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#include "kernels_body.h"

#define NAME(x) avx512_##x
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define VBYTES 64
#define STREAM(p, v) _mm512_stream_si512((__m512i *)(void *)(p), (__m512i)(v))
#define HALF_TO_FLOAT(v) ((avx512_f32)_mm512_cvtph_ps((__m256i)(v)))
#define FUSED(a, b, c) FUSE(a, b, c)
#define FLOAT_TO_HALF(v) ((avx512_half)_mm512_cvtps_ph((__m512)(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#include "kernels_body.h"
#endif

static void plain_copy(char *to, const char *from, size_t bytes) {
    memcpy(to, from, bytes);
}

static const Kernel *chosen = generic_kernels;
static Stream chosen_stream = plain_copy;
static const char *chosen_name = "generic";

static int use(const Kernel *kernels, Stream stream, const char *name) {
    chosen = kernels;
    chosen_stream = stream;
    chosen_name = name;
    return 1;
}

int use_instructions(const char *name) {
#ifdef X86_SETS
    __builtin_cpu_init();
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    if (wide && (!name || !strcmp(name, "avx512"))) return use(avx512_kernels, avx512_stream, "avx512");
    int middle = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma");
    if (middle && (!name || !strcmp(name, "avx2"))) return use(avx2_kernels, avx2_stream, "avx2");
#endif
    if (!name || !strcmp(name, "generic")) return use(generic_kernels, plain_copy, "generic");
    return 0;
}

const char *instructions(void) {
    return chosen_name;
}

Combine find_combine(const char *dtype, const char *combine) {
    for (const Kernel *k = chosen; k->dtype; k++)
        if (!strcmp(k->dtype, dtype) && !strcmp(k->combine, combine)) return k->function;
    return NULL;
}

Stream find_stream(void) {
    return chosen_stream;
}

/* In blocks, so that the source is read from memory once, however many destinations there are. */
void copy_all(char *const *to, int tos, const char *from, size_t bytes) {
    size_t block = tos == 1 ? bytes : BLOCK_BYTES;
    for (size_t at = 0; at < bytes; at += block) {
        size_t part = bytes - at < block ? bytes - at : block;
        for (int d = 0; d < tos; d++)
            if (to[d] != from) memcpy(to[d] + at, from + at, part);
    }
}
