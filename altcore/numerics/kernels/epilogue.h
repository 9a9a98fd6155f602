/* From a product to a layer's output: its operands' scales and the bias, in one pass. */

struct epilogue {
    const void *y;
    void *out;                /* may be y */
    const float *scales[2];   /* one for all, one for each row, or NULL for 1 */
    const float *bias;        /* one for each column, or NULL */
    int64_t rows, columns;
    int32_t is_half, to_half; /* whether y, and whether out, is bfloat16 */
    int32_t by_row[2];        /* which scales are by row */
    int32_t threads;
};

INLINE void scale_run(const void *y, int is_half, void *out, int to_half, int64_t n, float first,
                      float second, const float *restrict bias) {
    for (int64_t i = 0; i < n; i++) {
        float value = load(y, is_half, i) * first * second;
        if (bias) value += bias[i];
        if (to_half && !is_half)
            ((uint16_t *)out)[i] = half_of(bits_of(value));
        else /* a NaN from bfloat16 has no low bits */
            store(out, to_half ? TO_HALF : TO_FLOAT, i, value);
    }
}

/* By whether there is a bias; without one, rows of one scale are one run. */
#define RUN(NAME, IS_HALF, TO_HALF)                                                            \
    STAGE NAME(const void *y, void *out, int64_t n, float first, float second,                 \
               const float *bias) {                                                            \
        if (bias)                                                                              \
            scale_run(y, IS_HALF, out, TO_HALF, n, first, second, bias);                       \
        else                                                                                   \
            scale_run(y, IS_HALF, out, TO_HALF, n, first, second, 0);                          \
    }

RUN(scale_halves, 1, 1)
RUN(scale_and_widen, 1, 0)
RUN(scale_and_narrow, 0, 1)
RUN(scale_floats, 0, 0)

static float scale_at(const struct epilogue *o, int which, int64_t row) {
    const float *scale = o->scales[which];
    return scale ? scale[o->by_row[which] ? row : 0] : 1.0f;
}

static void scale_rows(const struct epilogue *o, int64_t from, int64_t to) {
    const int64_t in = o->is_half ? 2 : 4, size = o->to_half ? 2 : 4;
    const int64_t step = o->bias || o->by_row[0] || o->by_row[1] ? 1 : to - from;
    for (int64_t row = from; row < to; row += step) {
        const int64_t at = row * o->columns;
        (o->is_half ? o->to_half ? scale_halves : scale_and_widen
                    : o->to_half ? scale_and_narrow : scale_floats)(
            (const char *)o->y + at * in, (char *)o->out + at * size, step * o->columns,
            scale_at(o, 0, row), scale_at(o, 1, row), o->bias);
    }
}
