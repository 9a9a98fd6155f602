/* One weight's step on its grid: which elements flip, which flip back, and what is kept of it. */

struct flips {
    const void *before, *after;
    void *earlier;       /* what each element was before its last flip; of their type */
    int32_t *flipped_at; /* the step of that flip */
    int64_t *found;      /* flips, and those that go back */
    int64_t n;
    int32_t step, since;
    int32_t is_half, threads;
};

INLINE void follow_run(const struct flips *f, int is_half, int64_t start, int n,
                       int64_t *totals) {
    const int64_t size = is_half ? 2 : 4;
    const char *before = (const char *)f->before + start * size;
    const char *after = (const char *)f->after + start * size;
    char *earlier = (char *)f->earlier + start * size;
    int32_t *restrict at = f->flipped_at + start;
    const int32_t step = f->step, since = f->since;
    int32_t flips = 0, back = 0;
#pragma omp simd reduction(+ : flips, back)
    for (int i = 0; i < n; i++) {
        const float a = load(after, is_half, i), b = load(before, is_half, i);
        const float e = load(earlier, is_half, i);
        const int32_t flip = a != b ? 1 : 0;
        const uint32_t mask = (uint32_t)-flip;
        flips += flip;
        back += flip & (a == e ? 1 : 0) & (at[i] >= since ? 1 : 0);
        const int32_t last = at[i] > step ? at[i] : step;
        at[i] = (int32_t)(((uint32_t)last & mask) | ((uint32_t)at[i] & ~mask));
        const uint32_t kept = (bits_of(b) & mask) | (bits_of(e) & ~mask);
        if (is_half)
            ((uint16_t *)earlier)[i] = (uint16_t)(kept >> 16);
        else
            ((float *)earlier)[i] = float_of(kept);
    }
    totals[0] += flips, totals[1] += back;
}

STAGE follow_halves(const struct flips *f, int64_t start, int n, int64_t *totals) {
    follow_run(f, 1, start, n, totals);
}

STAGE follow_floats(const struct flips *f, int64_t start, int n, int64_t *totals) {
    follow_run(f, 0, start, n, totals);
}
