/* Rounding to a number format's grid, for float32 and bfloat16 tensors in memory.
 *
 * Bit for bit what altcore/numerics/torch_rounding.py computes (a NaN's payload aside), in loops that
 * the compiler vectorises: what kernels.c and blocks.h apply to a run of elements in one pass
 * over memory. No torch headers, so that it compiles in a few seconds.
 *
 * Needs -ffp-contract=off: a fused multiply-add would skip a rounding that is part of the
 * definition.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define STAGE static __attribute__((noinline)) void /* inlined, loops vectorise less well */
#define BLOCK 1024 /* divides 2**32: the index's high half is constant in a block */
#define PIECE 256 /* what a table rounds at a time */
#define FEW 16    /* thresholds; FEW of jobs.py */
#define SIGN 0x80000000u
#define INFINITE 0x7f800000u
#define NOT_A_NUMBER 0x7fc00000u

enum { NEAREST_EVEN, NEAREST_AWAY, TO_ZERO, UP, DOWN, STOCHASTIC };

struct ends { /* of a gap between grid values: the one nearer zero, then the other */
    double inner, width;
    uint32_t payload[2], over[2];
};

struct few { /* a table with so few thresholds that every number meets each of them */
    float threshold[FEW];
    uint32_t change[FEW], first;
};

enum { GIVEN, BY_AMAX, BY_POWER }; /* where scales come from */

struct job {
    /* of one call: CALL of structs.py */
    const void *x;
    void *out;
    int64_t n;
    const float *r, *s; /* one number per `row` elements, or NULL for 1; unless GIVEN, one for
                         * all, and written to */
    int64_t row;
    int64_t *counts; /* elements, overflow, flushed, nonfinite: added to; or NULL */
    double *errors;  /* noise and signal: likewise */
    uint64_t key;    /* mixed; for stochastic rounding */
    int32_t is_half, to_half; /* whether x, and whether out, is bfloat16 */
    int32_t is_fake;          /* whether to multiply by the scale that is found */
    int32_t threads, scaling;
    float margin, meets; /* the largest magnitude times `margin` is scaled to `meets` */
    /* of the format and its rules, from here on */
    /* a table: a few thresholds, or buckets for each sign, or sorted thresholds to search */
    const struct few *few;    /* or NULL */
    const float *magics;      /* one for each exponent, see round_in_binades; or NULL */
    const uint32_t *entries;  /* 2 * buckets, see find_in_buckets */
    const float *thresholds;
    const uint32_t *payloads; /* one per gap between thresholds */
    const struct ends *ends;  /* of each gap; for stochastic rounding */
    int64_t threshold_count, buckets;
    uint32_t bucket_low, bucket_high, bucket_shift;
    uint32_t centre, mirrored; /* a gap whose ends change places for numbers from 0 on */
    float bottom, top; /* rounding passes the ends below and from here */
    /* a float format */
    uint32_t min_normal, cut, flip;
    uint32_t to_magic; /* from an exponent's bits to those of its magic number; 0 for none */
    uint32_t gapped;   /* no subnormals */
    float magic, max, unit;
    /* stochastic rounding */
    uint32_t random_bits, has_few_bits; /* how many of the 32; whether these are other than all */
    float half; /* added to them, in units of the last one */
    /* all */
    float smallest;     /* the smallest magnitude but zero */
    float lowest, highest;
    uint32_t over_bits; /* magnitude given to overflows, the largest value if they saturate;
                         * tables: only if they do not */
    int32_t rounding, is_table, saturates;
    int32_t bounded; /* all numbers are finite, and none passes the ends */
};

/* A run of elements, handed on by its address: a copy of what was just written would wait for
 * all writes to memory before it. out = rounded(x * r) * s. */
struct part {
    const float *x;
    float *out;
    int64_t start; /* index of the first element */
    int n;
    float r, s;           /* one for all, */
    const float *rs, *ss; /* or, unless NULL, one for each: out = (rounded(x * rs) * ss) * s */
};

static const float ones[BLOCK] = {[0 ... BLOCK - 1] = 1.0f};

struct totals {
    int64_t counts[4];
    double noise, signal;
};

INLINE uint32_t bits_of(float f) {
    uint32_t b;
    memcpy(&b, &f, 4);
    return b;
}

INLINE float float_of(uint32_t b) {
    float f;
    memcpy(&f, &b, 4);
    return f;
}

INLINE float power_of_two(int32_t k) { /* -127 to 127 */
    return float_of(k > -127 ? (uint32_t)(k + 127) << 23 : 0x00400000u);
}

/* ---------------------------------------------------------------- rounding to a float format
 * Every variant is a loop of its own, made from round_float by constants: each operation fewer
 * is a tenth of the time. NaN is not tested for: it is carried along by float operations, and
 * comparisons are written so that it takes the branch where there are some. */

enum {
    FLIPPED = STOCHASTIC + 1, /* NEAREST_EVEN, where even exponents mean odd codes */
    ADDING,                   /* NEAREST_EVEN, where round_by_adding can */
    GAPPED,                   /* STOCHASTIC, without subnormals */
    FEW_BITS                  /* STOCHASTIC, by a few random bits, with subnormals or without */
};

/* The rounded bits of a magnitude in the normal range; carries into the exponent are right. */
INLINE uint32_t round_large(const struct job *j, int rounding, uint32_t mag, uint32_t sign) {
    const uint32_t cut = j->cut, mask = (1u << cut) - 1, half = 1u << (cut - 1);
    uint32_t more = 0;
    if (rounding == NEAREST_EVEN) more = half - 1 + ((mag >> cut) & 1);
    if (rounding == FLIPPED) more = half - ((mag >> cut) & 1);
    if (rounding == NEAREST_AWAY) more = half;
    if (rounding == UP) more = sign ? 0 : mask;
    if (rounding == DOWN) more = sign ? mask : 0;
    return (mag + more) & ~mask;
}

/* The rounded value of a magnitude below the normal range: a multiple of `unit`. Adding
 * `magic` rounds to the nearest one, ties to even; the other roundings correct that. */
INLINE float round_small(const struct job *j, int rounding, float a, uint32_t sign) {
    const float unit = j->unit, near = (a + j->magic) - j->magic;
    const float below = near > a ? near - unit : near;
    if (rounding == NEAREST_EVEN || rounding == FLIPPED) return near;
    if (rounding == NEAREST_AWAY) return a - near >= 0.5f * unit ? near + unit : near;
    if (rounding == TO_ZERO) return below;
    const float above = below < a ? below + unit : below;
    return ((rounding == UP) == (sign == 0)) ? above : below;
}

/* Rounding to nearest even, saturating, in a few operations, where `magic` times any power of two
 * up to the largest value's fits: the magnitude's own exponent, but no less than the subnormals',
 * makes the constant whose addition rounds it. */
INLINE float round_by_adding(const struct job *j, float a) {
    const uint32_t mag = bits_of(a), most = bits_of(j->max), least = j->min_normal;
    const uint32_t exponent = ((int32_t)mag < (int32_t)most ? mag : most) & INFINITE;
    const float magic =
        float_of(((int32_t)exponent > (int32_t)least ? exponent : least) + j->to_magic);
    const float inside = j->max < a ? j->max : a;
    return (inside + magic) - magic;
}

/* Random bits: the hash of altcore/numerics/hashing.py, from its first multiplication on. The
 * top ones are the good ones. */
#define DRAW_STEP 0x9e3779b1u
INLINE uint32_t draw(uint32_t multiplied, uint32_t second) {
    const uint32_t x = (multiplied ^ (multiplied >> 16) ^ second) * 0x85ebca6bu;
    return (x ^ (x >> 13)) * 0xc2b2ae35u;
}

INLINE uint32_t first_draw(const struct job *j, int64_t start) {
    return ((uint32_t)start + (uint32_t)j->key) * DRAW_STEP;
}

INLINE uint32_t second_key(const struct job *j, int64_t start) {
    return (uint32_t)(j->key >> 32) ^ (uint32_t)((uint64_t)start >> 32);
}

/* Stochastic rounding: as many random bits as are cut off are added below the cut. Below the
 * normal range the addition of the smallest normal value first brings the cut to its place,
 * which rounds the fraction to that many bits. */
INLINE float round_randomly(const struct job *j, int rounding, float a, uint32_t h) {
    const uint32_t least = j->min_normal, cut = j->cut;
    const uint32_t low = a < float_of(least) ? ~0u : 0;
    const float lift = float_of(low & least);
    uint32_t mask = (1u << cut) - 1, noise = h >> (32 - cut);
    if (rounding == FEW_BITS) { /* of the fraction's exact first bits: it is cut off, not rounded */
        const uint32_t lowest = j->gapped ? 23 : cut, keep = ~0u << (32 - j->random_bits);
        const uint32_t centre = j->half != 0.0f && j->random_bits < 32 ? (~keep + 1) >> 1 : 0;
        const float lifted = a + lift;
        h = (h & keep) | centre;
        noise = low ? h >> (32 - lowest) : h >> (32 - cut);
        mask = low ? (1u << lowest) - 1 : mask;
        const uint32_t bits = bits_of(lifted) - (lifted - lift > a ? 1 : 0);
        const float few = float_of((bits + noise) & ~mask) - lift;
        return a < INFINITY ? few : a;
    }
    if (rounding == GAPPED) { /* the gap around zero is one step, as wide as the lowest binade */
        mask = low ? (1u << 23) - 1 : mask;
        noise = low ? h >> 9 : noise;
    }
    const float size = float_of((bits_of(a + lift) + noise) & ~mask) - lift;
    return a < INFINITY ? size : a;
}

INLINE void round_float(const struct job *j, const struct part *p, int rounding, int counted,
                        int each, int64_t *totals) {
    const float *restrict x = p->x, *restrict rs = p->rs, *restrict ss = p->ss;
    float *restrict out = p->out;
    const struct job local = *j;
    const float least = float_of(local.min_normal), max = local.max;
    const int random = rounding == STOCHASTIC || rounding == GAPPED || rounding == FEW_BITS;
    uint32_t drawn = first_draw(j, p->start);
    const uint32_t second = second_key(j, p->start);
    uint32_t passed = 0, zeros = 0, were_zero = 0, nonfinite = 0;
    for (int i = 0; i < p->n; i++) {
        const float y = x[i] * (each ? rs[i] : p->r);
        const uint32_t sign = bits_of(y) & SIGN, mag = bits_of(y) & ~SIGN;
        const float a = float_of(mag);
        float size;
        int over = a >= local.top;
        if (rounding == ADDING) {
            size = round_by_adding(&local, a);
        } else if (random) {
            size = round_randomly(&local, rounding, a, draw(drawn, second));
            drawn += DRAW_STEP;
        } else {
            const float large = float_of(round_large(&local, rounding, mag, sign));
            size = a >= least ? large : round_small(&local, rounding, a, sign);
        }
        if (rounding != ADDING) { /* now, as rounding may pass even a subnormal largest value */
            over = size > max;
            size = over ? float_of(local.over_bits) : size;
        }
        const float q = float_of(bits_of(size) | sign);
        out[i] = (each ? q * ss[i] : q) * p->s;
        if (counted) {
            const uint32_t was = bits_of(x[i]) & ~SIGN;
            const uint32_t lost = (INFINITE - 1 - was) >> 31; /* the sign: NaN or infinite */
            passed += (over ? 1u : 0u) & (lost ^ 1);
            zeros += size == 0.0f && (!each || was) ? 1 : 0;
            were_zero += !each && was == 0 ? 1 : 0;
            nonfinite += lost;
        }
    }
    if (counted) {
        totals[1] += passed;
        /* a zero stays zero, unless the scale is NaN and nothing is zero any more */
        totals[2] += zeros > were_zero ? zeros - were_zero : 0;
        totals[3] += nonfinite;
    }
}

#define LOOPS(NAME, ROUNDING)                                                                  \
    static void NAME(const struct job *j, const struct part *p, int64_t *totals) {             \
        if (p->rs && j->counts)                                                                \
            round_float(j, p, ROUNDING, 1, 1, totals);                                         \
        else if (p->rs)                                                                        \
            round_float(j, p, ROUNDING, 0, 1, totals);                                         \
        else if (j->counts)                                                                    \
            round_float(j, p, ROUNDING, 1, 0, totals);                                         \
        else                                                                                   \
            round_float(j, p, ROUNDING, 0, 0, totals);                                         \
    }

LOOPS(nearest_even, NEAREST_EVEN)
LOOPS(flipped, FLIPPED)
LOOPS(nearest_away, NEAREST_AWAY)
LOOPS(to_zero, TO_ZERO)
LOOPS(up, UP)
LOOPS(down, DOWN)
LOOPS(stochastic, STOCHASTIC)
LOOPS(gapped, GAPPED)
LOOPS(few_bits, FEW_BITS)
LOOPS(adding, ADDING) /* only where overflows saturate */

typedef void (*float_loop)(const struct job *, const struct part *, int64_t *);

static float_loop loop_of(const struct job *j) {
    static const float_loop loops[] = {nearest_even, nearest_away, to_zero,
                                       up,           down,         stochastic};
    if (j->rounding == NEAREST_EVEN && j->to_magic && j->saturates) return adding;
    if (j->rounding == NEAREST_EVEN && j->flip) return flipped;
    if (j->rounding == STOCHASTIC && j->has_few_bits) return few_bits;
    if (j->rounding == STOCHASTIC && j->gapped) return gapped;
    return loops[j->rounding];
}

/* ---------------------------------------------------------------------------------- bfloat16 */

STAGE widen(const uint16_t *restrict x, float *restrict wide, int n) {
    for (int i = 0; i < n; i++) wide[i] = float_of((uint32_t)x[i] << 16);
}

INLINE uint16_t half_of(uint32_t bits) {
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1);
    return (uint16_t)((int32_t)(bits & ~SIGN) > (int32_t)INFINITE ? 0x7fc0u : rounded >> 16);
}

/* The product q * s rounded once: to odd in float32, which keeps what the second rounding, to
 * nearest even, has to know. With a fused multiply-add, unless a remainder could underflow. */
INLINE uint16_t narrow_fused(float q, float s) {
    const float product = q * s, left = fmaf(q, s, -product);
    uint32_t bits = bits_of(product);
    const uint32_t inexact = left < 0.0f || left > 0.0f ? 1 : 0;
    bits = (bits - (inexact & ((bits_of(left) ^ bits) >> 31))) | inexact;
    return half_of(bits);
}

INLINE uint16_t narrow_wide(float q, float s) {
    const double product = (double)q * (double)s;
    const float single = (float)product;
    const double size = fabs(product), near = fabs((double)single);
    uint32_t bits = bits_of(single);
    bits -= near > size ? 1 : 0;
    bits |= near < size || near > size ? 1 : 0;
    return half_of(bits);
}

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FUSES 1
#else
#define FUSES 0
#endif

/* `least`: the smallest magnitude but zero that a product can have. */
STAGE narrow(const float *restrict q, float s, double least, uint16_t *restrict out, int n) {
    if (FUSES && (s == 1.0f || least > 0x1p-90))
        for (int i = 0; i < n; i++) out[i] = narrow_fused(q[i], s);
    else
        for (int i = 0; i < n; i++) out[i] = narrow_wide(q[i], s);
}

STAGE narrow_each(const float *restrict q, const float *restrict ss, double least,
                  uint16_t *restrict out, int n) {
    if (FUSES && least > 0x1p-90)
        for (int i = 0; i < n; i++) out[i] = narrow_fused(q[i], ss[i]);
    else
        for (int i = 0; i < n; i++) out[i] = narrow_wide(q[i], ss[i]);
}

/* ------------------------------------------------------------------------------ squared error
 * Sums in as many lanes as the compiler likes: their order depends on the machine. */

/* In float64, for whatever lies outside of what float32 can square, and what is not finite. */
INLINE void square(const struct job *j, const struct part *p, const float *restrict q,
                   int replaced, int each, struct totals *totals) {
    const float *restrict x = p->x, *restrict rs = p->rs, *restrict ss = p->ss;
    const float lowest = j->lowest, highest = j->highest;
    double noise = 0.0, signal = 0.0;
    for (int i = 0; i < p->n; i++) {
        const float y = x[i] * (each ? rs[i] : p->r);
        const uint32_t kept = (bits_of(y) & ~SIGN) < INFINITE ? ~0u : 0;
        float grid = q[i];
        if (replaced) { /* an overflow that is infinite or NaN now */
            const float end = y > highest ? highest : lowest;
            grid = (bits_of(grid) & ~SIGN) < INFINITE ? grid : end;
        }
        const double weight = each ? float_of(bits_of(ss[i]) & kept) : 1.0;
        const double error = float_of(bits_of(grid - y) & kept) * weight;
        const double size = float_of(bits_of(y) & kept) * weight;
        noise += error * error;
        signal += size * size;
    }
    totals->noise += noise;
    totals->signal += signal;
}

/* In float32, over so few elements that its sums lose nothing that matters; multiplies by scales
 * on the way, unless `out` is NULL. */
INLINE int square_quickly(const struct part *p, const float *restrict q, int each,
                          int multiplies, struct totals *totals) {
    const float *restrict x = p->x, *restrict rs = p->rs, *restrict ss = p->ss;
    float *restrict out = p->out;
    const float r = p->r, s = p->s;
    float noise = 0.0f, signal = 0.0f;
#pragma omp simd reduction(+ : noise, signal)
    for (int i = 0; i < p->n; i++) {
        const float y = x[i] * (each ? rs[i] : r), weight = each ? ss[i] : 1.0f;
        const float error = (q[i] - y) * weight, size = y * weight;
        noise += error * error;
        signal += size * size;
        if (multiplies) out[i] = (each ? q[i] * weight : q[i]) * s;
    }
    if (!(noise > 0x1p-60f && noise < 0x1p100f && signal > 0x1p-60f && signal < 0x1p100f))
        return 0; /* or NaN */
    totals->noise += noise;
    totals->signal += signal;
    return 1;
}

static int square_piece(const struct part *p, const float *q, struct totals *totals) {
    if (p->rs)
        return p->out ? square_quickly(p, q, 1, 1, totals) : square_quickly(p, q, 1, 0, totals);
    return p->out ? square_quickly(p, q, 0, 1, totals) : square_quickly(p, q, 0, 0, totals);
}

/* Add the squared errors of a part's grid values `q`, and multiply those by its scales, into
 * `p->out` unless it is NULL. */
STAGE add_errors(const struct job *j, const struct part *p, const float *q,
                 struct totals *totals) {
    for (int i = 0; i < p->n; i += PIECE) {
        const int n = p->n - i < PIECE ? p->n - i : PIECE;
        const float *rs = p->rs ? p->rs + i : 0, *ss = p->rs ? p->ss + i : 0;
        float *out = p->out ? p->out + i : 0;
        const struct part piece = {p->x + i, out, 0, n, p->r, p->s, rs, ss};
        if (square_piece(&piece, q + i, totals)) continue;
        if (rs)
            square(j, &piece, q + i, 0, 1, totals);
        else
            square(j, &piece, q + i, !j->saturates, 0, totals);
    }
}
