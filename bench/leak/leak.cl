/* The leak hunt's kernels, one text for OpenCL C 1.2 and CUDA C++: a victim that leaves a canary in local memory and registers, and the
 * listener of LeftoverLocals (CVE-2023-4969): read local memory that nobody of this kernel has written.
 *
 * `plant` and `look` have the form of the wipe's `scrub`: `units` notes which multiprocessors ran a block, `tally[0]` counts. `spread` and
 * `count` do the same for global memory, with one word everywhere, so that it is found wherever a driver puts the pages next.
 */
#ifdef __OPENCL_VERSION__
#define KERNEL __kernel void
#define GLOBAL __global
#define SHARED __local
#define BARRIER() barrier(CLK_LOCAL_MEM_FENCE)
#define LID ((u32)get_local_id(0))
#define GID ((u64)get_global_id(0))
#define GSIZE ((u64)get_global_size(0))
#define LSIZE ((u32)get_local_size(0))
#define ADD(p, v) atomic_add((volatile __global u32 *)(p), (v))
#define LOCAL_ARGUMENT , __local volatile u32 *local_words
#define LOCAL_DECLARATION
#define UNIT(units) units[get_group_id(0)] = 1
typedef ulong u64;
typedef uint u32;
#else
#define KERNEL extern "C" __global__ void
#define GLOBAL
#define BARRIER() __syncthreads()
#define LID (threadIdx.x)
#define GID ((u64)blockIdx.x * blockDim.x + threadIdx.x)
#define GSIZE ((u64)gridDim.x * blockDim.x)
#define LSIZE (blockDim.x)
#define ADD(p, v) atomicAdd((p), (v))
#define LOCAL_ARGUMENT
#define LOCAL_DECLARATION extern __shared__ volatile u32 local_words[];
#define UNIT(units) { u32 unit; asm volatile("mov.u32 %0, %%smid;" : "=r"(unit)); units[unit] = 1; }
typedef unsigned long long u64;
typedef unsigned int u32;
#endif

#define REGISTERS 200

KERNEL plant(GLOBAL u32 *tally, GLOBAL u32 *units, u64 canary, u32 words LOCAL_ARGUMENT)
{
    LOCAL_DECLARATION
    u32 values[REGISTERS];
    u32 sum = 0;
    for (u32 i = LID; i < words; i += LSIZE)
        local_words[i] = (u32)canary;
    BARRIER();
    /* Each value is the canary and stays it, but the compiler cannot know that: local memory decides, and in each round every value needs
     * two others, so that all are live at once. */
#pragma unroll
    for (u32 i = 0; i < REGISTERS; i++)
        values[i] = local_words[(LID + i) % words];
    for (u32 round = 0; round < 2; round++) {
#pragma unroll
        for (u32 i = 0; i < REGISTERS; i++)
            values[i] += values[(i + 1) % REGISTERS] ^ values[(i + 77) % REGISTERS];
    }
#pragma unroll
    for (u32 i = 0; i < REGISTERS; i++)
        sum |= values[i] ^ (u32)canary;
    if (sum != 0)
        ADD(tally + 1, 1);
    BARRIER();
    for (u32 i = LID; i < words; i += LSIZE)
        local_words[i] = (u32)canary;
    if (LID == 0)
        UNIT(units);
}

KERNEL look(GLOBAL u32 *tally, GLOBAL u32 *units, u64 canary, u32 words LOCAL_ARGUMENT)
{
    LOCAL_DECLARATION
    u32 found = 0;
    for (u32 i = LID; i < words; i += LSIZE)
        found += local_words[i] == (u32)canary;
    if (found)
        ADD(tally, found);
    if (LID == 0)
        UNIT(units);
}

KERNEL spread(GLOBAL u64 *memory, u64 words, u64 canary, GLOBAL u32 *tally)
{
    for (u64 i = GID; i < words; i += GSIZE)
        memory[i] = canary;
}

KERNEL count(const GLOBAL u64 *memory, u64 words, u64 canary, GLOBAL u32 *tally)
{
    u32 found = 0;
    for (u64 i = GID; i < words; i += GSIZE)
        found += memory[i] == canary;
    if (found)
        ADD(tally, found);
}
