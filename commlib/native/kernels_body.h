/* The combines for one set of instructions. Included by kernels.c once per set, with
 *   TARGET       the function attribute,       NAME(x)  the name of x in this set,
 *   VBYTES       bytes of a vector register,
 *   HALF_TO_FLOAT(v), FLOAT_TO_HALF(v)         vectors of VBYTES / 4 halves and floats,
 *   STREAM(p, v)                               optional: a store of a vector past the caches,
 *   FUSED(a, b, c)                             a * b + c, rounded once where the set can.
 * Each combine goes once through memory, four registers of every source at a time, whatever their number. What is too
 * long for the first-level cache it takes two registers at a time, and has the processor fetch what lies AHEAD of it:
 * with many sources the processor's own prefetching falls behind. */

#define VECTOR(type, name) typedef type NAME(name) __attribute__((vector_size(VBYTES), aligned(1), may_alias))
VECTOR(float, f32);
VECTOR(double, f64);
VECTOR(uint8_t, u8);
VECTOR(uint16_t, u16);
VECTOR(uint32_t, u32);
VECTOR(uint64_t, u64);
VECTOR(int8_t, i8);
VECTOR(int16_t, i16);
VECTOR(int32_t, i32);
VECTOR(int64_t, i64);
#undef VECTOR
typedef uint16_t NAME(half) __attribute__((vector_size(VBYTES / 2), aligned(1), may_alias));

#define INLINE TARGET static inline __attribute__((always_inline))

/* V: the vector in registers; IN(p, i), OUT(p, i, v): the i-th vector at p; SPAN: bytes of four of them. */
#define COMBINE(name, V, SPAN, IN, OUT, OP)                                                                          \
    TARGET static void NAME(name)(char *const *to, int tos, const char *const *from, int froms, size_t bytes) {      \
        size_t at = 0;                                                                                               \
        for (; bytes >= FAR_BYTES && at + (SPAN) / 2 <= bytes; at += (SPAN) / 2) {                                   \
            const char *p = from[0] + at;                                                                            \
            FETCH(p, (SPAN) / 2);                                                                                    \
            V a = IN(p, 0), b = IN(p, 1);                                                                            \
            for (int s = 1; s < froms; s++) {                                                                        \
                p = from[s] + at;                                                                                    \
                FETCH(p, (SPAN) / 2);                                                                                \
                a = OP(a, IN(p, 0)), b = OP(b, IN(p, 1));                                                            \
            }                                                                                                        \
            for (int s = 0; s < tos; s++) {                                                                          \
                char *q = to[s] + at;                                                                                \
                OUT(q, 0, a), OUT(q, 1, b);                                                                          \
            }                                                                                                        \
        }                                                                                                            \
        for (; at + (SPAN) <= bytes; at += (SPAN)) {                                                                 \
            const char *p = from[0] + at;                                                                            \
            V a = IN(p, 0), b = IN(p, 1), c = IN(p, 2), d = IN(p, 3);                                                \
            for (int s = 1; s < froms; s++) {                                                                        \
                p = from[s] + at;                                                                                    \
                a = OP(a, IN(p, 0)), b = OP(b, IN(p, 1)), c = OP(c, IN(p, 2)), d = OP(d, IN(p, 3));                  \
            }                                                                                                        \
            for (int s = 0; s < tos; s++) {                                                                          \
                char *q = to[s] + at;                                                                                \
                OUT(q, 0, a), OUT(q, 1, b), OUT(q, 2, c), OUT(q, 3, d);                                              \
            }                                                                                                        \
        }                                                                                                            \
        if (at < bytes) combine_rest(NAME(name), SPAN, to, tos, from, froms, at, bytes - at);                        \
    }

#define IN_PLAIN(V, p, i) (*(const V *)((p) + (i) * VBYTES))
#define OUT_PLAIN(V, p, i, v) (*(V *)((p) + (i) * VBYTES) = (v))
#define PLAIN(name, V, OP)                                                                                           \
    INLINE V NAME(name##_in)(const char *p, int i) { return IN_PLAIN(V, p, i); }                                     \
    INLINE void NAME(name##_out)(char *p, int i, V v) { OUT_PLAIN(V, p, i, v); }                                     \
    COMBINE(name, V, 4 * VBYTES, NAME(name##_in), NAME(name##_out), OP)

#define ADD(a, b) ((a) + (b))
#define MUL(a, b) ((a) * (b))
#define AND(a, b) ((a) & (b))
#define OR(a, b) ((a) | (b))
#define XOR(a, b) ((a) ^ (b))

/* Select by a mask of all ones or all zeros in each element. */
#define PICK(V, M, mask, a, b) ((V)(((M)(a) & (M)(mask)) | ((M)(b) & ~(M)(mask))))
#define ORDER(type, V, M)                                                                                            \
    INLINE V NAME(type##_lesser)(V a, V b) { return PICK(V, M, a < b, a, b); }                                       \
    INLINE V NAME(type##_greater)(V a, V b) { return PICK(V, M, a > b, a, b); }
/* As np.minimum and torch.minimum: a NaN on either side comes out. */
#define ORDER_FLOAT(type, V, M)                                                                                      \
    INLINE V NAME(type##_lesser)(V a, V b) { return PICK(V, M, (M)(a < b) | (M)(a != a), a, b); }                    \
    INLINE V NAME(type##_greater)(V a, V b) { return PICK(V, M, (M)(a > b) | (M)(a != a), a, b); }

#define NUMBERS(type, WRAP, V, M, ORDER_KIND)                                                                        \
    ORDER_KIND(type, V, M)                                                                                           \
    PLAIN(type##_sum, WRAP, ADD)                                                                                     \
    PLAIN(type##_prod, WRAP, MUL)                                                                                    \
    PLAIN(type##_min, V, NAME(type##_lesser))                                                                        \
    PLAIN(type##_max, V, NAME(type##_greater))

NUMBERS(float32, NAME(f32), NAME(f32), NAME(u32), ORDER_FLOAT)
NUMBERS(float64, NAME(f64), NAME(f64), NAME(u64), ORDER_FLOAT)
NUMBERS(int8, NAME(u8), NAME(i8), NAME(u8), ORDER) /* integers wrap: signed sums are unsigned ones */
NUMBERS(int16, NAME(u16), NAME(i16), NAME(u16), ORDER)
NUMBERS(int32, NAME(u32), NAME(i32), NAME(u32), ORDER)
NUMBERS(int64, NAME(u64), NAME(i64), NAME(u64), ORDER)
NUMBERS(uint8, NAME(u8), NAME(u8), NAME(u8), ORDER)
NUMBERS(uint16, NAME(u16), NAME(u16), NAME(u16), ORDER)
NUMBERS(uint32, NAME(u32), NAME(u32), NAME(u32), ORDER)
NUMBERS(uint64, NAME(u64), NAME(u64), NAME(u64), ORDER)
PLAIN(bits_and, NAME(u64), AND)
PLAIN(bits_or, NAME(u64), OR)
PLAIN(bits_xor, NAME(u64), XOR)

/* Halves are floats in registers, rounded to a half after each combine, as torch does. */
INLINE NAME(f32) NAME(bfloat16_wide)(NAME(half) h) {
    return (NAME(f32))(__builtin_convertvector(h, NAME(u32)) << 16);
}
INLINE NAME(u32) NAME(bfloat16_bits)(NAME(f32) v) { /* the rounded half in the upper 16 bits of each element */
    NAME(u32) bits = (NAME(u32))v, rounded = bits + 0x7FFF + ((bits >> 16) & 1);
    return PICK(NAME(u32), NAME(u32), v != v, (bits & 0xFFFF0000u) | 0x7FC00000u, rounded);
}
INLINE NAME(f32) NAME(bfloat16_round)(NAME(f32) v) { return (NAME(f32))(NAME(bfloat16_bits)(v) & 0xFFFF0000u); }
INLINE NAME(half) NAME(bfloat16_narrow)(NAME(f32) v) {
    return __builtin_convertvector((NAME(u32))v >> 16, NAME(half)); /* has been rounded */
}
INLINE NAME(f32) NAME(float16_wide)(NAME(half) h) { return HALF_TO_FLOAT(h); }
INLINE NAME(half) NAME(float16_narrow)(NAME(f32) v) { return FLOAT_TO_HALF(v); }
INLINE NAME(f32) NAME(float16_round)(NAME(f32) v) { return HALF_TO_FLOAT(FLOAT_TO_HALF(v)); }

#define HALF(type, op, OP)                                                                                           \
    INLINE NAME(f32) NAME(type##_##op##_step)(NAME(f32) a, NAME(f32) b) { return NAME(type##_round)(OP(a, b)); }     \
    COMBINE(type##_##op, NAME(f32), 2 * VBYTES, NAME(type##_in), NAME(type##_out), NAME(type##_##op##_step))
#define HALVES(type)                                                                                                 \
    INLINE NAME(f32) NAME(type##_in)(const char *p, int i) {                                                         \
        return NAME(type##_wide)(*(const NAME(half) *)(p + i * (VBYTES / 2)));                                       \
    }                                                                                                                \
    INLINE void NAME(type##_out)(char *p, int i, NAME(f32) v) {                                                      \
        *(NAME(half) *)(p + i * (VBYTES / 2)) = NAME(type##_narrow)(v);                                              \
    }                                                                                                                \
    HALF(type, sum, ADD)                                                                                             \
    HALF(type, prod, MUL)                                                                                            \
    HALF(type, min, NAME(float32_lesser))                                                                            \
    HALF(type, max, NAME(float32_greater))

HALVES(float16)
HALVES(bfloat16)

/* Complex products, one number after the other and fused as numpy does; sums are sums of twice as many floats. */
#define COMPLEX(name, type)                                                                                          \
    TARGET static void NAME(name)(char *const *to, int tos, const char *const *from, int froms, size_t bytes) {      \
        for (size_t at = 0; at < bytes; at += 2 * sizeof(type)) {                                                    \
            type a[2], b[2];                                                                                         \
            memcpy(a, from[0] + at, sizeof a);                                                                       \
            for (int s = 1; s < froms; s++) {                                                                        \
                memcpy(b, from[s] + at, sizeof b);                                                                   \
                type real = FUSED(a[0], b[0], -(a[1] * b[1]));                                                       \
                a[1] = FUSED(a[0], b[1], a[1] * b[0]);                                                               \
                a[0] = real;                                                                                         \
            }                                                                                                        \
            for (int s = 0; s < tos; s++) memcpy(to[s] + at, a, sizeof a);                                           \
        }                                                                                                            \
    }
COMPLEX(complex64_prod, float)
COMPLEX(complex128_prod, double)

/* A copy past the caches, for what will not be read before it would have left them; ends with a store fence, because
 * such stores keep no order. Whole vectors of aligned destinations only: the ends are copied plainly. */
#ifdef STREAM
TARGET static void NAME(stream)(char *to, const char *from, size_t bytes) {
    size_t head = (size_t)(-(uintptr_t)to & (VBYTES - 1)), at;
    if (head > bytes) head = bytes;
    memcpy(to, from, head);
    for (at = head; at + 4 * VBYTES <= bytes; at += 4 * VBYTES) {
        NAME(u64) a = NAME(bits_or_in)(from + at, 0), b = NAME(bits_or_in)(from + at, 1);
        NAME(u64) c = NAME(bits_or_in)(from + at, 2), d = NAME(bits_or_in)(from + at, 3);
        STREAM(to + at, a), STREAM(to + at + VBYTES, b);
        STREAM(to + at + 2 * VBYTES, c), STREAM(to + at + 3 * VBYTES, d);
    }
    memcpy(to + at, from + at, bytes - at);
    _mm_sfence();
}
#endif

#define FOUR(type)                                                                                                   \
    {#type, "sum", NAME(type##_sum)}, {#type, "prod", NAME(type##_prod)}, {#type, "min", NAME(type##_min)}, {        \
        #type, "max", NAME(type##_max)                                                                               \
    }
#define BITS(type) {#type, "band", NAME(bits_and)}, {#type, "bor", NAME(bits_or)}, {#type, "bxor", NAME(bits_xor)}
static const Kernel NAME(kernels)[] = {
    FOUR(float32), FOUR(float64), FOUR(float16), FOUR(bfloat16),
    FOUR(int8), FOUR(int16), FOUR(int32), FOUR(int64), FOUR(uint8), FOUR(uint16), FOUR(uint32), FOUR(uint64),
    BITS(int8), BITS(int16), BITS(int32), BITS(int64), BITS(uint8), BITS(uint16), BITS(uint32), BITS(uint64),
    {"complex64", "sum", NAME(float32_sum)}, {"complex64", "prod", NAME(complex64_prod)},
    {"complex128", "sum", NAME(float64_sum)}, {"complex128", "prod", NAME(complex128_prod)},
    BITS(bool), {"bool", "sum", NAME(bits_or)}, {"bool", "max", NAME(bits_or)},
    {"bool", "prod", NAME(bits_and)}, {"bool", "min", NAME(bits_and)},
    {NULL, NULL, NULL},
};

#undef TARGET
#undef NAME
#undef VBYTES
#undef HALF_TO_FLOAT
#undef FLOAT_TO_HALF
#undef FUSED
#undef STREAM
#undef INLINE
#undef COMBINE
#undef IN_PLAIN
#undef OUT_PLAIN
#undef PLAIN
#undef ADD
#undef MUL
#undef AND
#undef OR
#undef XOR
#undef PICK
#undef ORDER
#undef ORDER_FLOAT
#undef NUMBERS
#undef HALF
#undef HALVES
#undef COMPLEX
#undef FOUR
#undef BITS
