/* The layout of every struct that Python mirrors, for structs.py to compare. */

struct field {
    const char *struct_name, *name;
    int32_t kind, offset, size, struct_size;
};

/* As Python's struct module writes types; P for pointers, and for arrays and structs. */
#define KIND(value)                                                                            \
    _Generic((value), int32_t: 'i', int64_t: 'q', uint32_t: 'I', uint64_t: 'Q', float: 'f',    \
             default: 'P')

#define FIELD(of, name)                                                                        \
    {#of, #name, KIND(((struct of *)0)->name), (int32_t)offsetof(struct of, name),             \
     (int32_t)sizeof(((struct of *)0)->name), (int32_t)sizeof(struct of)}

#define JOB(name) FIELD(job, name)
#define BLOCKS(name) FIELD(block_job, name)
#define EPILOGUE(name) FIELD(epilogue, name)
#define FLIPS(name) FIELD(flips, name)
#define ORDINALS(name) FIELD(ordinals, name)
#define REDUCTION(name) FIELD(reduction, name)

static const struct field fields[] = {
    JOB(x), JOB(out), JOB(n), JOB(r), JOB(s), JOB(row), JOB(counts), JOB(errors), JOB(key),
    JOB(is_half), JOB(to_half), JOB(is_fake), JOB(threads), JOB(scaling), JOB(margin),
    JOB(meets), JOB(few), JOB(magics), JOB(entries), JOB(thresholds), JOB(payloads), JOB(ends),
    JOB(threshold_count), JOB(buckets), JOB(bucket_low), JOB(bucket_high), JOB(bucket_shift),
    JOB(centre), JOB(mirrored), JOB(bottom), JOB(top), JOB(min_normal), JOB(cut), JOB(flip),
    JOB(to_magic), JOB(gapped), JOB(magic), JOB(max), JOB(unit), JOB(random_bits),
    JOB(has_few_bits), JOB(half), JOB(smallest), JOB(lowest), JOB(highest), JOB(over_bits),
    JOB(rounding), JOB(is_table), JOB(saturates), JOB(bounded),

    BLOCKS(job), BLOCKS(scale_job), BLOCKS(most), BLOCKS(scales), BLOCKS(inverses),
    BLOCKS(outer), BLOCKS(height), BLOCKS(width), BLOCKS(block_height), BLOCKS(block_width),
    BLOCKS(rule), BLOCKS(top), BLOCKS(threshold), BLOCKS(lowest_power), BLOCKS(highest_power),
    BLOCKS(power_of_zero), BLOCKS(largest), BLOCKS(whole), BLOCKS(g),

    EPILOGUE(y), EPILOGUE(out), EPILOGUE(scales), EPILOGUE(bias), EPILOGUE(rows),
    EPILOGUE(columns), EPILOGUE(is_half), EPILOGUE(to_half), EPILOGUE(by_row),
    EPILOGUE(threads),

    FLIPS(before), FLIPS(after), FLIPS(earlier), FLIPS(flipped_at), FLIPS(found), FLIPS(n),
    FLIPS(step), FLIPS(since), FLIPS(is_half), FLIPS(threads),

    ORDINALS(q), ORDINALS(out), ORDINALS(n), ORDINALS(least), ORDINALS(min_normal),
    ORDINALS(cut), ORDINALS(omitted), ORDINALS(middle), ORDINALS(threads),

    REDUCTION(x), REDUCTION(y), REDUCTION(r), REDUCTION(n), REDUCTION(least),
    REDUCTION(is_half), REDUCTION(threads),
};
