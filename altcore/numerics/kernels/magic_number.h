/* The usual case in one pass: rounding to nearest even by adding, from and to bfloat16, and with
 * everything counted. What is here does nothing that rounding.h does not; it does it together. */

enum { TO_FLOAT, TO_HALF, CUT_TO_HALF }; /* how results are written */

INLINE float load(const void *x, int is_half, int64_t i) {
    return is_half ? float_of((uint32_t)((const uint16_t *)x)[i] << 16) : ((const float *)x)[i];
}

/* To bfloat16 by adding half of what is cut off: for numbers that a rounding to float32 before
 * did not bring onto a tie. NaN stays NaN, as its low bits are 0. */
INLINE void store(void *out, int how, int64_t i, float value) {
    const uint32_t bits = bits_of(value);
    if (how == TO_FLOAT)
        ((float *)out)[i] = value;
    else if (how == CUT_TO_HALF)
        ((uint16_t *)out)[i] = (uint16_t)(bits >> 16);
    else
        ((uint16_t *)out)[i] = (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

/* Whether a number of `digits` significant bits times `s` can round to a float32 that is a tie
 * between two bfloat16s without being one itself: hardly ever. `least`: as for narrow. */
static int rounds_twice(int digits, float s, double least) {
    if (!(s > 0x1p-100f && s < INFINITY && least > 0x1p-90)) return 1;
    for (int m = 1 << (digits - 1); m < 1 << digits; m++) {
        const double product = (double)m * (double)(s > 0x1p100f ? s * 0x1p-27f : s);
        const float single = (float)product;
        if ((bits_of(single) & 0xffffu) == 0x8000u && (double)single != product) return 1;
    }
    return 0;
}

/* How a job's grid values times `s` become bfloat16s, or -1 where only `narrow` will do. */
static int way_to_half(const struct job *j, float s) {
    const int digits = 24 - (int)j->cut;
    if (digits > 8) return -1;
    if (s == 1.0f) return CUT_TO_HALF;
    return rounds_twice(digits, s, (double)j->smallest * s) ? -1 : TO_HALF;
}

/* Grid values times `s`, as bfloat16s. */
STAGE write_halves(const struct job *j, const float *restrict q, float s, uint16_t *restrict out,
                   int n) {
    const int how = j->is_table ? -1 : way_to_half(j, s);
    if (how == CUT_TO_HALF)
        for (int i = 0; i < n; i++) store(out, CUT_TO_HALF, i, q[i]);
    else if (how == TO_HALF)
        for (int i = 0; i < n; i++) store(out, TO_HALF, i, q[i] * s);
    else
        narrow(q, s, (double)j->smallest * s, out, n);
}

INLINE void add_in_run(const struct job *j, const void *restrict x, int is_half,
                       void *restrict out, int n, float r, float s, int how, int counts,
                       int bounded, int64_t *totals) {
    const struct job local = *j;
    const float top = local.top;
    int32_t passed = 0, flushed = 0, lost = 0;
#pragma omp simd reduction(+ : passed, flushed, lost)
    for (int i = 0; i < n; i++) {
        const float wide = load(x, is_half, i), y = wide * r;
        const float a = float_of(bits_of(y) & ~SIGN), size = round_by_adding(&local, a);
        const float q = float_of(bits_of(size) | (bits_of(y) & SIGN));
        store(out, how, i, q * s);
        if (counts) flushed += (size == 0.0f ? 1 : 0) & (wide != 0.0f ? 1 : 0);
        if (counts && !bounded) {
            const int32_t is_lost = (bits_of(wide) & ~SIGN) >= INFINITE ? 1 : 0;
            lost += is_lost;
            passed += (a >= top ? 1 : 0) & (is_lost ^ 1);
        }
    }
    if (counts) totals[1] += passed, totals[2] += flushed, totals[3] += lost;
}

/* `how`: to what. A NaN of float32 may have low bits that TO_HALF would carry into the sign, so
 * that from there only grid values come as bfloat16. */
#define ADD(NAME, IS_HALF, HOW)                                                                \
    STAGE NAME(const struct job *j, const void *x, void *out, int n, float r, float s,         \
               int64_t *totals) {                                                              \
        if (!j->counts)                                                                        \
            add_in_run(j, x, IS_HALF, out, n, r, s, HOW, 0, 0, totals);                        \
        else if (j->bounded)                                                                   \
            add_in_run(j, x, IS_HALF, out, n, r, s, HOW, 1, 1, totals);                        \
        else                                                                                   \
            add_in_run(j, x, IS_HALF, out, n, r, s, HOW, 1, 0, totals);                        \
    }

ADD(add_to_floats, 0, TO_FLOAT)
ADD(add_and_cut, 0, CUT_TO_HALF)
ADD(add_halves_to_floats, 1, TO_FLOAT)
ADD(add_halves, 1, TO_HALF)
ADD(add_halves_and_cut, 1, CUT_TO_HALF)

typedef void (*adding_loop)(const struct job *, const void *, void *, int, float, float,
                            int64_t *);

/* The loop for one scale and no errors; NULL where there is none. */
static adding_loop adding_loop_of(const struct job *j, float s) {
    const int how = j->to_half ? way_to_half(j, s) : TO_FLOAT;
    if (how == TO_FLOAT) return j->is_half ? add_halves_to_floats : add_to_floats;
    if (how == CUT_TO_HALF) return j->is_half ? add_halves_and_cut : add_and_cut;
    return how == TO_HALF && j->is_half ? add_halves : 0;
}

#define SUMMED 512 /* elements whose squares are added up in float32, in lanes */

INLINE float add_square(float sum, float value) {
    return FUSES ? fmaf(value, value, sum) : sum + value * value;
}

/* Round, count, and sum up squared errors, of a piece. False where a sum is not to be trusted:
 * where something is not finite, or beyond what float32 can square; nothing is counted then. */
INLINE int add_and_measure(const struct job *j, const struct part *p, int each, int apart,
                           float *restrict grid, struct totals *totals) {
    const float *restrict x = p->x, *restrict rs = p->rs, *restrict ss = p->ss;
    float *restrict out = p->out;
    const struct job local = *j;
    const float r = p->r, s = p->s, top = local.top;
    float noise = 0.0f, signal = 0.0f;
    int32_t passed = 0, zeros = 0, were_zero = 0;
#pragma omp simd reduction(+ : noise, signal, passed, zeros, were_zero)
    for (int i = 0; i < p->n; i++) {
        const float y = x[i] * (each ? rs[i] : r), weight = each ? ss[i] : 1.0f;
        const float a = float_of(bits_of(y) & ~SIGN), size = round_by_adding(&local, a);
        const float q = float_of(bits_of(size) | (bits_of(y) & SIGN));
        const float error = (size - a) * weight, size_of_y = a * weight;
        noise = add_square(noise, error);
        signal = add_square(signal, size_of_y);
        passed += a >= top ? 1 : 0;
        zeros += size == 0.0f ? 1 : 0;
        were_zero += x[i] == 0.0f ? 1 : 0;
        if (apart)
            grid[i] = q;
        else
            out[i] = (each ? q * weight : q) * s;
    }
    if (!(noise > 0x1p-60f && noise < 0x1p100f && signal > 0x1p-60f && signal < 0x1p100f))
        return 0; /* or NaN */
    totals->noise += noise;
    totals->signal += signal;
    totals->counts[1] += passed;
    totals->counts[2] += zeros - were_zero;
    return 1;
}

/* Pieces so rounded, into `p->out` times the scales or, unless it is NULL, into `grid`; where
 * that fails, as in any other case. */
STAGE measure(const struct job *j, const struct part *p, float *grid, struct totals *totals) {
    float spare[SUMMED];
    for (int i = 0; i < p->n; i += SUMMED) {
        const int n = p->n - i < SUMMED ? p->n - i : SUMMED;
        const float *rs = p->rs ? p->rs + i : 0, *ss = p->rs ? p->ss + i : 0;
        struct part piece = {p->x + i, p->out + i, p->start + i, n, p->r, p->s, rs, ss};
        float *to = grid ? grid + i : spare;
        if (rs ? (grid ? add_and_measure(j, &piece, 1, 1, to, totals)
                       : add_and_measure(j, &piece, 1, 0, to, totals))
               : (grid ? add_and_measure(j, &piece, 0, 1, to, totals)
                       : add_and_measure(j, &piece, 0, 0, to, totals)))
            continue;
        piece.out = to, piece.s = 1.0f, piece.ss = rs ? ones : 0;
        loop_of(j)(j, &piece, totals->counts);
        piece.out = grid ? 0 : p->out + i, piece.s = p->s, piece.ss = ss;
        add_errors(j, &piece, to, totals);
    }
}
