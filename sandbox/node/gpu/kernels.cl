/* The wipe's kernels, one text for OpenCL C 1.2 and CUDA C++ (`nvcc -ptx -x cu`).
 *
 * Memory is handled in pairs of 64-bit words (16 bytes an access). Counters are 32 bits wide: a chunk has at most 2^30 words.
 * `tally[0]` counts wrong words, `tally[1]` holds the lowest index of one, or 0xffffffff, `tally[2]` counts the faults that are told of:
 * from `tally + 4` on follow at most 64 pairs of 64-bit words, the index of a wrong word and the bits in which it differs. Each thread
 * tells of the first that it meets, so that memory full of residue costs no more atomic operations than there are threads.
 */
#ifdef __OPENCL_VERSION__
#define KERNEL __kernel void
#define GLOBAL __global
#define SHARED __local
#define BARRIER() barrier(CLK_LOCAL_MEM_FENCE)
#define GID ((u64)get_global_id(0))
#define GSIZE ((u64)get_global_size(0))
#define LID ((u32)get_local_id(0))
#define LSIZE ((u32)get_local_size(0))
#define GROUP ((u32)get_group_id(0))
#define ADD(p, v) atomic_add((volatile __global u32 *)(p), (v))
#define LEAST(p, v) atomic_min((volatile __global u32 *)(p), (v))
#define PAIR(a, b) ((ulong2)((a), (b)))
typedef ulong u64;
typedef uint u32;
typedef ulong2 pair;
#else
#define KERNEL extern "C" __global__ void
#define GLOBAL
#define SHARED
#define BARRIER() __syncthreads()
#define GID ((u64)blockIdx.x * blockDim.x + threadIdx.x)
#define GSIZE ((u64)gridDim.x * blockDim.x)
#define LID (threadIdx.x)
#define LSIZE (blockDim.x)
#define GROUP (blockIdx.x)
#define ADD(p, v) atomicAdd((p), (v))
#define LEAST(p, v) atomicMin((p), (v))
#define PAIR(a, b) make_ulonglong2((a), (b))
typedef unsigned long long u64;
typedef unsigned int u32;
typedef ulonglong2 pair;
#endif

#define REGISTERS 248

/* A bijection of the pair's index, so that each address holds another word and aliased addresses are found. Seed 0 means zeros; an even
 * seed gives the complement of the odd one above it, so that a bit that is stuck at either value is found by the two. */
#ifdef __OPENCL_VERSION__
inline
#else
__device__ __forceinline__
#endif
pair expected(u64 index, u64 seed)
{
    u64 z = (index + (seed | 1)) * 0x9e3779b97f4a7c15UL;
    z ^= z >> 32;
    z *= 0xd6e8feb86659fd93UL;
    z ^= z >> 29;
    return seed == 0 ? PAIR(0, 0) : seed & 1 ? PAIR(z, ~z) : PAIR(~z, z);
}

#define FAULTS 64

/* Four accesses are under way at a time: one alone leaves a fast memory waiting for its own latency. */
KERNEL fill(GLOBAL pair *memory, u64 pairs, u64 seed)
{
    const u64 step = GSIZE;
    u64 i = GID;
    for (; i + 3 * step < pairs; i += 4 * step) {
        memory[i] = expected(i, seed);
        memory[i + step] = expected(i + step, seed);
        memory[i + 2 * step] = expected(i + 2 * step, seed);
        memory[i + 3 * step] = expected(i + 3 * step, seed);
    }
    for (; i < pairs; i += step)
        memory[i] = expected(i, seed);
}

#define CHECK(seen, index)                                                       \
    {                                                                            \
        const pair want = expected(index, seed);                                 \
        const u64 low = (seen).x ^ want.x, high = (seen).y ^ want.y;             \
        if (low | high) {                                                        \
            if (!wrong) {                                                        \
                first = 2 * (index) + (low ? 0 : 1);                             \
                bits = low ? low : high;                                         \
            }                                                                    \
            wrong += (low ? 1 : 0) + (high ? 1 : 0);                             \
        }                                                                        \
    }

KERNEL compare(const GLOBAL pair *memory, u64 pairs, u64 seed, GLOBAL u32 *tally)
{
    const u64 step = GSIZE;
    u32 wrong = 0;
    u64 first = 0, bits = 0;
    u64 i = GID;
    for (; i + 3 * step < pairs; i += 4 * step) {
        const pair one = memory[i], two = memory[i + step], three = memory[i + 2 * step], four = memory[i + 3 * step];
        CHECK(one, i)
        CHECK(two, i + step)
        CHECK(three, i + 2 * step)
        CHECK(four, i + 3 * step)
    }
    for (; i < pairs; i += step) {
        const pair last = memory[i];
        CHECK(last, i)
    }
    if (wrong) {
        ADD(tally, wrong);
        LEAST(tally + 1, (u32)first);
        const u32 slot = ADD(tally + 2, 1);
        if (slot < FAULTS) {
            GLOBAL u64 *fault = (GLOBAL u64 *)(tally + 4) + 2 * slot;
            fault[0] = first;
            fault[1] = bits;
        }
    }
}

/* Overwrites the group's local memory and as many registers as a thread can hold, and reads the local memory back.
 * Groups wait for nobody: enough of them are launched to visit each unit several times; on CUDA each says which it ran on. The local memory is
 * volatile, so that no compiler leaves out writes that nobody reads. */
KERNEL scrub(GLOBAL u32 *tally, GLOBAL u32 *units, u64 seed, u32 words
#ifdef __OPENCL_VERSION__
    , SHARED volatile u32 *local_words)
{
#else
    )
{
    extern __shared__ volatile u32 local_words[];
#endif
    u32 values[REGISTERS];
    u32 sum = 0;
    for (u32 i = LID; i < words; i += LSIZE)
        local_words[i] = (u32)(seed ^ i);
    BARRIER();
    for (u32 i = LID; i < words; i += LSIZE)
        sum += local_words[i] != (u32)(seed ^ i);
    if (sum)
        ADD(tally, sum);
    BARRIER();
    for (u32 i = LID; i < words; i += LSIZE)
        local_words[i] = 0;
    BARRIER();
#pragma unroll
    for (u32 i = 0; i < REGISTERS; i++)
        values[i] = (u32)seed ^ (LID * 2654435761u + i);
    /* Two rounds in which every value needs its neighbours keep all of them live at once. */
    for (u32 round = 0; round < 2; round++) {
#pragma unroll
        for (u32 i = 0; i < REGISTERS; i++)
            values[i] = values[i] * 1664525u + values[(i + 1) % REGISTERS] + values[(i + 77) % REGISTERS];
    }
    sum = 0;
#pragma unroll
    for (u32 i = 0; i < REGISTERS; i++)
        sum ^= values[i];
    /* No compiler can know whether this holds, so that none can leave the work out. Nobody reads `tally[3]`. */
    if (sum == (u32)(seed >> 32))
        ADD(tally + 3, 1);
#ifndef __OPENCL_VERSION__
    u32 unit;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(unit));
    if (LID == 0)
        units[unit] = 1;
#else
    if (LID == 0)
        units[GROUP] = 1;
#endif
}
