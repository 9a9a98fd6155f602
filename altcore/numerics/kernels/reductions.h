/* Passes that only add up: inner products of two tensors, moments and small elements of one. */

struct reduction {
    const void *x, *y;  /* y: for products only */
    const float *r;     /* one number, or NULL for 1 */
    int64_t n;
    float least;
    int32_t is_half[2]; /* whether x, and whether y, is bfloat16 */
    int32_t threads;
};

#define LANES 8 /* sums side by side, so that adding does not wait for itself */

INLINE void add_products(double x, double y, double *xx, double *yy, double *xy, double *dd) {
    *xx += x * x, *yy += y * y, *xy += x * y, *dd += (x - y) * (x - y);
}

INLINE void products_in_run(const struct reduction *t, int x_is_half, int y_is_half, int64_t start,
                            int n, double *sums) {
    const char *x = (const char *)t->x + start * (x_is_half ? 2 : 4);
    const char *y = (const char *)t->y + start * (y_is_half ? 2 : 4);
    double xx[LANES] = {0}, yy[LANES] = {0}, xy[LANES] = {0}, dd[LANES] = {0};
    const int whole = n / LANES * LANES;
    for (int i = 0; i < whole; i += LANES)
        for (int k = 0; k < LANES; k++)
            add_products(load(x, x_is_half, i + k), load(y, y_is_half, i + k), xx + k, yy + k,
                         xy + k, dd + k);
    for (int i = whole; i < n; i++)
        add_products(load(x, x_is_half, i), load(y, y_is_half, i), xx, yy, xy, dd);
    for (int k = 0; k < LANES; k++)
        sums[0] += xx[k], sums[1] += yy[k], sums[2] += xy[k], sums[3] += dd[k];
}

STAGE products(const struct reduction *t, int64_t start, int n, double *sums) {
    const int which = 2 * (t->is_half[0] ? 1 : 0) + (t->is_half[1] ? 1 : 0);
    if (which == 0)
        products_in_run(t, 0, 0, start, n, sums);
    else if (which == 1)
        products_in_run(t, 0, 1, start, n, sums);
    else if (which == 2)
        products_in_run(t, 1, 0, start, n, sums);
    else
        products_in_run(t, 1, 1, start, n, sums);
}

/* The sum of x minus `mean`, or, if `squared`, of its squares. */
INLINE double deviations_in_run(const struct reduction *t, int is_half, int squared, double mean,
                                int64_t start, int n) {
    const char *x = (const char *)t->x + start * (is_half ? 2 : 4);
    double sums[LANES] = {0}, sum = 0.0;
    const int whole = n / LANES * LANES;
    for (int i = 0; i < whole; i += LANES)
        for (int k = 0; k < LANES; k++) {
            const double d = load(x, is_half, i + k) - mean;
            sums[k] += squared ? d * d : d;
        }
    for (int i = whole; i < n; i++) {
        const double d = load(x, is_half, i) - mean;
        sum += squared ? d * d : d;
    }
    for (int k = 0; k < LANES; k++) sum += sums[k];
    return sum;
}

STAGE deviations(const struct reduction *t, int squared, double mean, int64_t start, int n,
                 double *sum) {
    const int which = 2 * (t->is_half[0] ? 1 : 0) + (squared ? 1 : 0);
    *sum += which == 0   ? deviations_in_run(t, 0, 0, mean, start, n)
            : which == 1 ? deviations_in_run(t, 0, 1, mean, start, n)
            : which == 2 ? deviations_in_run(t, 1, 0, mean, start, n)
                         : deviations_in_run(t, 1, 1, mean, start, n);
}

/* Elements other than 0 whose magnitude times r is below `least`. */
INLINE int32_t small_in_run(const struct reduction *t, int is_half, int64_t start, int n) {
    const char *x = (const char *)t->x + start * (is_half ? 2 : 4);
    const float r = t->r ? *t->r : 1.0f, least = t->least;
    int32_t found = 0;
#pragma omp simd reduction(+ : found)
    for (int i = 0; i < n; i++) {
        const float wide = load(x, is_half, i);
        const float size = float_of(bits_of(wide * r) & ~SIGN);
        found += (size < least ? 1 : 0) & (wide != 0.0f ? 1 : 0);
    }
    return found;
}

STAGE small_ones(const struct reduction *t, int64_t start, int n, int64_t *number) {
    *number += t->is_half[0] ? small_in_run(t, 1, start, n) : small_in_run(t, 0, start, n);
}
