/* A stand-in for libcuda.so.1: the calls that Sealrig makes, over memory in a file (cards.h), with the kernels written again in C.
 *
 * It is strict where a driver is: a call without cuInit or without a current context fails, a launch with more shared memory than the
 * kernel was allowed fails, PTX without the asked entry has no such function. A card file can plant a failure:
 *   allocations-most BYTES   no more than that is given
 *   lost-after COUNT         from that launch on everything fails with CUDA_ERROR_UNKNOWN, as when a card falls off the bus
 *   flips COUNT              one bit flips after that fill
 *   skips COUNT              that fill writes nothing and says it did
 *   hangs NAME               launches of that kernel never end
 *   slow MICROSECONDS        each launch takes that long
 *   blind-unit 1             the local scrub never reaches the last multiprocessor
 *   blind-compare 1          the comparison looks at the first half of a block only
 *   refuses-limit LIMIT      that limit (CUlimit) cannot be set
 *   registers COUNT          the local scrub was built with that many registers a thread (else 255)
 *   spills BYTES             so many bytes of its values are in memory
 */
#include "cards.h"

#define OK 0
#define INVALID 1
#define OUT_OF_MEMORY 2
#define NOT_INITIALIZED 3
#define NO_DEVICE 100
#define INVALID_DEVICE 101
#define INVALID_CONTEXT 201
#define NOT_FOUND 500
#define UNKNOWN 999
#define SHARED_DEFAULT 49152

typedef unsigned long long Address;
typedef struct { uint8_t *start; size_t size; size_t *pages; size_t count; int card; } Block;

static int ready, card = -1, retained, lost, launches, fills;
static int visible[MOST_CARDS], visible_count;
static Block blocks[4096];
static int block_count;
static int shared_allowed[8];
static const char *NAMES[] = {"fill", "compare", "scrub", "look", "plant", NULL};
static char *ptx;

static int check(void) { return !ready ? NOT_INITIALIZED : card < 0 || !retained ? INVALID_CONTEXT : lost ? UNKNOWN : OK; }

int cuInit(unsigned flags)
{
    const char *wanted = getenv("CUDA_VISIBLE_DEVICES");
    if (flags)
        return INVALID;
    visible_count = 0;
    for (int index = 0; index < cards(); index++) {
        int matches = !wanted || (say(index, "uuid") && strstr(wanted, say(index, "uuid")) != NULL);
        for (int instance = 0; instance < 8 && !matches; instance++) {
            char key[32];
            snprintf(key, sizeof key, "mig%d-uuid", instance);
            matches = say(index, key) && strcmp(say(index, key), wanted) == 0;
        }
        if (matches)
            visible[visible_count++] = index;
    }
    if (visible_count == 0)
        return NO_DEVICE;
    ready = 1;
    return OK;
}
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = visible_count; return ready ? OK : NOT_INITIALIZED; }
int cuDeviceGet(int *device, int ordinal)
{
    if (!ready)
        return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= visible_count)
        return INVALID_DEVICE;
    *device = visible[ordinal];
    return OK;
}
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, (size_t)length, "%s", say(device, "name")); return OK; }
int cuDeviceGetUuid_v2(unsigned char *out, int device)
{
    const char *text = getenv("CUDA_VISIBLE_DEVICES") ? getenv("CUDA_VISIBLE_DEVICES") : say(device, "uuid");
    text = strchr(text, '-') + 1;
    for (int index = 0; index < 16; text++)
        if (*text != '-') {
            unsigned byte;
            sscanf(text, "%2x", &byte);
            out[index++] = (unsigned char)byte;
            text++;
        }
    return OK;
}
int cuDeviceGetUuid(unsigned char *out, int device) { return cuDeviceGetUuid_v2(out, device); }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    switch (attribute) {
    case 16: *value = (int)number(device, "units", 4); return OK;
    case 38: *value = (int)number(device, "cache", 131072); return OK;
    case 75: *value = (int)number(device, "capability", 90) / 10; return OK;
    case 76: *value = (int)number(device, "capability", 90) % 10; return OK;
    case 97: *value = (int)number(device, "shared", 101376); return OK;
    default: return INVALID;
    }
}
int cuDevicePrimaryCtxRetain(void **context, int device)
{
    if (!ready)
        return NOT_INITIALIZED;
    retained = 1;
    *context = (void *)(long)(device + 1);
    FILE *file = fopen(path_of(device, "ran"), "a");
    fprintf(file, "%d\n", getpid());
    fclose(file);
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; retained = 0; return OK; }
int cuDevicePrimaryCtxRelease(int device) { return cuDevicePrimaryCtxRelease_v2(device); }
int cuDevicePrimaryCtxSetFlags_v2(int device, unsigned flags) { (void)device; (void)flags; return OK; }
int cuCtxSetCurrent(void *context) { card = (int)(long)context - 1; return OK; }
int cuCtxSynchronize(void) { return check(); }
int cuCtxSetLimit(int limit, size_t value)
{
    (void)value;
    return say(card, "refuses-limit") && (int)number(card, "refuses-limit", 0) == limit ? INVALID : check();
}
int cuCtxEnablePeerAccess(void *context, unsigned flags) { (void)context; (void)flags; return check(); }
int cuDeviceCanAccessPeer(int *can, int one, int other) { *can = (int)number(one, "peers", 0) && one != other; return OK; }

int cuMemAlloc_v2(Address *out, size_t size)
{
    int code = check();
    size_t count = (size + PAGE - 1) / PAGE, found = 0, held = 0;
    if (code != OK)
        return code;
    Table table = lock(card);
    size_t *pages = malloc(count * sizeof *pages);
    for (size_t page = 0; page < table.pages; page++) {
        held += table.owner[page] == getpid();
        if (found < count && gone(table.owner[page]))
            pages[found++] = page;
    }
    uint64_t most = number(card, "allocations-most", UINT64_MAX);
    if (found < count || (held + count) * (uint64_t)PAGE > most || block_count == 4096) {
        unlock(table);
        free(pages);
        return OUT_OF_MEMORY;
    }
    int file = open(path_of(card, "vram"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (ftruncate(file, (off_t)(table.pages * PAGE)) != 0)
        abort();
    uint8_t *start = mmap(NULL, count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t index = 0; index < count; index++) {
        uint8_t *at = mmap(start + index * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, (off_t)(pages[index] * PAGE));
        if (table.owner[pages[index]] != 0 && number(card, "scrubs", 0))
            memset(at, 0, PAGE);
        table.owner[pages[index]] = getpid();
    }
    close(file);
    unlock(table);
    blocks[block_count++] = (Block){start, size, pages, count, card};
    *out = (Address)start;
    return OK;
}
int cuMemFree_v2(Address address)
{
    for (int index = 0; index < block_count; index++)
        if (blocks[index].start == (uint8_t *)address) {
            Block block = blocks[index];
            Table table = lock(block.card);
            for (size_t page = 0; page < block.count; page++) {
                if (number(block.card, "scrubs", 0))
                    memset(block.start + page * PAGE, 0, PAGE);
                table.owner[block.pages[page]] = 0;
            }
            unlock(table);
            munmap(block.start, block.count * PAGE);
            free(block.pages);
            blocks[index] = blocks[--block_count];
            return OK;
        }
    return INVALID;
}
int cuMemGetInfo_v2(size_t *available, size_t *total)
{
    int code = check();
    if (code != OK)
        return code;
    Table table = lock(card);
    size_t pages = 0;
    for (size_t page = 0; page < table.pages; page++)
        pages += (size_t)gone(table.owner[page]);
    *available = pages * PAGE;
    *total = table.pages * PAGE;
    unlock(table);
    return OK;
}
static int inside(Address address, size_t size)
{
    for (int index = 0; index < block_count; index++)
        if ((uint8_t *)address >= blocks[index].start && (uint8_t *)address + size <= blocks[index].start + blocks[index].size)
            return 1;
    return 0;
}
static int move(Address target, Address source, size_t size)
{
    int code = check();
    if (code == OK)
        memmove((void *)target, (void *)source, size);
    return code;
}
int cuMemcpyHtoD_v2(Address target, const void *source, size_t size) { return inside(target, size) ? move(target, (Address)source, size) : INVALID; }
int cuMemcpyDtoH_v2(void *target, Address source, size_t size) { return inside(source, size) ? move((Address)target, source, size) : INVALID; }
int cuMemcpyDtoD_v2(Address target, Address source, size_t size)
{
    return inside(target, size) && inside(source, size) ? move(target, source, size) : INVALID;
}
int cuMemcpyPeer(Address target, void *one, Address source, void *other, size_t size)
{
    (void)one; (void)other;
    return cuMemcpyDtoD_v2(target, source, size);
}
int cuMemsetD32_v2(Address target, unsigned value, size_t count)
{
    int code = check();
    if (code != OK || !inside(target, count * 4))
        return code != OK ? code : INVALID;
    for (size_t index = 0; index < count; index++)
        ((uint32_t *)target)[index] = value;
    return OK;
}
int cuMemHostAlloc(void **out, size_t size, unsigned flags) { (void)flags; *out = malloc(size); return check(); }
int cuMemFreeHost(void *pointer) { free(pointer); return OK; }

int cuModuleLoadData(void **module, const void *image)
{
    int code = check();
    if (code != OK)
        return code;
    if (!strstr(image, ".version") || !strstr(image, ".target"))
        return 218; /* CUDA_ERROR_INVALID_PTX */
    ptx = strdup(image);
    *module = ptx;
    return OK;
}
int cuModuleUnload(void *module) { (void)module; return OK; }
int cuModuleGetFunction(void **function, void *module, const char *name)
{
    char entry[96];
    snprintf(entry, sizeof entry, ".entry %s(", name);
    if (!strstr(module, entry))
        return NOT_FOUND;
    *function = strdup(name);
    return OK;
}
static int slot(const char *name)
{
    int index = 0;
    while (NAMES[index] && strcmp(NAMES[index], name))
        index++;
    return index;
}
int cuFuncSetAttribute(void *function, int attribute, int value)
{
    if (attribute == 8 && value > (int)number(card, "shared", 101376))
        return INVALID;
    if (attribute == 8)
        shared_allowed[slot(function)] = value;
    return check();
}

int cuFuncGetAttribute(int *value, int attribute, void *function)
{
    (void)function;
    if (attribute != 3 && attribute != 4)
        return INVALID;
    *value = attribute == 4 ? (int)number(card, "registers", 255) : (int)number(card, "spills", 0);
    return check();
}

static uint64_t word(uint64_t index, uint64_t seed, int high)
{
    uint64_t z = (index + (seed | 1)) * 0x9e3779b97f4a7c15ull;
    z ^= z >> 32;
    z *= 0xd6e8feb86659fd93ull;
    z ^= z >> 29;
    return seed ? (high != !(seed & 1) ? ~z : z) : 0;
}
static int fill(void **arguments)
{
    uint64_t *memory = *(uint64_t **)arguments[0], pairs = *(uint64_t *)arguments[1], seed = *(uint64_t *)arguments[2];
    if (!inside((Address)memory, pairs * 16))
        return 700; /* CUDA_ERROR_ILLEGAL_ADDRESS */
    fills++;
    if ((int)number(card, "skips", 0) == fills)
        return OK;
    for (uint64_t index = 0; index < pairs; index++) {
        memory[2 * index] = word(index, seed, 0);
        memory[2 * index + 1] = word(index, seed, 1);
    }
    if ((int)number(card, "flips", 0) == fills)
        memory[5] ^= 1ull << 17;
    return OK;
}
static int compare(void **arguments)
{
    uint64_t *memory = *(uint64_t **)arguments[0], pairs = *(uint64_t *)arguments[1], seed = *(uint64_t *)arguments[2];
    uint32_t *tally = *(uint32_t **)arguments[3];
    if (!inside((Address)memory, pairs * 16) || !inside((Address)tally, 16))
        return 700;
    if (number(card, "blind-compare", 0))
        pairs /= 2;
    for (uint64_t index = 0; index < 2 * pairs; index++) {
        uint64_t wanted = word(index / 2, seed, (int)(index & 1));
        if (memory[index] == wanted)
            continue;
        tally[0]++;
        if ((uint32_t)index < tally[1])
            tally[1] = (uint32_t)index;
        if (tally[2] < 64) {
            uint64_t *list = (uint64_t *)(tally + 4);
            list[2 * tally[2]] = index;
            list[2 * tally[2] + 1] = memory[index] ^ wanted;
            tally[2]++;
        }
    }
    return OK;
}
/* A multiprocessor's local memory is kept in N.local between launches and processes, as on cards that do not clear it. */
static uint32_t *local_memory(size_t bytes, size_t units)
{
    int file = open(path_of(card, "local"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (ftruncate(file, (off_t)(bytes * units)) != 0)
        abort();
    uint32_t *memory = mmap(NULL, bytes * units, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return memory;
}
static int local_kernel(const char *name, unsigned grid, unsigned shared, void **arguments)
{
    size_t units = number(card, "units", 4), most = number(card, "shared", 101376);
    uint32_t *tally = *(uint32_t **)arguments[0], *marks = *(uint32_t **)arguments[1];
    uint64_t seed = *(uint64_t *)arguments[2];
    uint32_t words = *(uint32_t *)arguments[3], *local = local_memory(most, units);
    if (words * 4ull > shared)
        return 700;
    for (unsigned block = 0; block < grid && block < units; block++) {
        uint32_t *mine = local + block * most / 4;
        if (block == units - 1 && number(card, "blind-unit", 0))
            continue;
        for (uint32_t index = 0; index < words; index++) {
            if (!strcmp(name, "plant"))
                mine[index] = (uint32_t)seed;
            else if (!strcmp(name, "look"))
                tally[0] += mine[index] == (uint32_t)seed;
            else
                mine[index] = 0;
        }
        marks[block] = 1;
    }
    munmap(local, most * units);
    return OK;
}
static int every_word(const char *name, void **arguments)
{
    uint64_t *memory = *(uint64_t **)arguments[0], words = *(uint64_t *)arguments[1], canary = *(uint64_t *)arguments[2];
    uint32_t *tally = *(uint32_t **)arguments[3];
    if (!inside((Address)memory, words * 8) || !inside((Address)tally, 16))
        return 700;
    for (uint64_t index = 0; index < words; index++) {
        if (!strcmp(name, "spread"))
            memory[index] = canary;
        else
            tally[0] += memory[index] == canary;
    }
    return OK;
}
static float half(uint16_t bits)
{
    int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    float value = exponent ? (float)(fraction + 1024) : (float)(fraction * 2);
    for (int step = exponent; step < 25; step++) value *= 0.5f;
    for (int step = 25; step < exponent; step++) value *= 2;
    return bits & 0x8000 ? -value : value;
}
static double element(const char *kind, const void *matrix, size_t index)
{
    union { uint32_t bits; float value; } wide;
    if (!strcmp(kind, "fp64")) return ((const double *)matrix)[index];
    if (!strcmp(kind, "fp32")) return ((const float *)matrix)[index];
    if (!strcmp(kind, "int8")) return ((const int8_t *)matrix)[index];
    if (!strcmp(kind, "fp16")) return half(((const uint16_t *)matrix)[index]);
    wide.bits = (uint32_t)((const uint16_t *)matrix)[index] << 16;
    return wide.value;
}
static int multiply(const char *kind, void **arguments)
{
    const void *a = *(void **)arguments[0], *b = *(void **)arguments[1];
    void *c = *(void **)arguments[2];
    uint32_t n = *(uint32_t *)arguments[3];
    double *left = malloc(n * sizeof *left), *sums = malloc(n * sizeof *sums), *right = malloc((size_t)n * n * sizeof *right);
    for (size_t index = 0; index < (size_t)n * n; index++)
        right[index] = element(kind, b, index);
    for (uint32_t row = 0; row < n; row++) {
        memset(sums, 0, n * sizeof *sums);
        for (uint32_t step = 0; step < n; step++)
            left[step] = element(kind, a, (size_t)row * n + step);
        for (uint32_t step = 0; step < n; step++)
            for (uint32_t column = 0; column < n; column++)
                sums[column] += left[step] * right[(size_t)step * n + column];
        for (uint32_t column = 0; column < n; column++) {
            size_t index = (size_t)row * n + column;
            if (!strcmp(kind, "fp64")) ((double *)c)[index] = sums[column];
            else if (!strcmp(kind, "int8")) ((int32_t *)c)[index] = (int32_t)sums[column];
            else ((float *)c)[index] = (float)sums[column];
        }
    }
    free(left); free(sums); free(right);
    return OK;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **extra)
{
    const char *name = function;
    int code = check();
    (void)gy; (void)gz; (void)by; (void)bz; (void)stream; (void)extra;
    if (code != OK)
        return code;
    if (say(card, "lost-after") && launches >= (int)number(card, "lost-after", 0)) {
        lost = 1;
        return OK; /* launches are asynchronous: the next call tells */
    }
    launches++;
    if (gx == 0 || bx == 0 || bx > 1024 || (int)shared > (shared_allowed[slot(name)] ? shared_allowed[slot(name)] : SHARED_DEFAULT))
        return INVALID;
    if (say(card, "hangs") && !strcmp(say(card, "hangs"), name))
        for (;;)
            pause();
    usleep((unsigned)number(card, "slow", 0));
    if (!strcmp(name, "fill")) return fill(arguments);
    if (!strcmp(name, "compare")) return compare(arguments);
    if (!strcmp(name, "scrub") || !strcmp(name, "plant") || !strcmp(name, "look")) return local_kernel(name, gx, shared, arguments);
    if (!strcmp(name, "spread") || !strcmp(name, "count")) return every_word(name, arguments);
    if (!strncmp(name, "multiply_", 9)) return multiply(name + 9, arguments);
    return NOT_FOUND;
}

int cuGetErrorName(int code, const char **text) { (void)code; *text = "an error"; return OK; }
int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

/* cuda-bindings ask for every entry by name, without the version that the header adds to it. */
int cuGetProcAddress_v2(const char *symbol, void **pointer, int version, uint64_t flags, int *status);
static const struct { const char *name; void *entry; } ENTRIES[] = {
#define ENTRY(name) {#name, name}
#define ENTRY_V2(name) {#name, name##_v2}
    ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuDeviceGetCount), ENTRY(cuDeviceGet), ENTRY(cuDeviceGetName),
    ENTRY_V2(cuDeviceGetUuid), ENTRY(cuDeviceGetAttribute), ENTRY(cuDevicePrimaryCtxRetain), ENTRY_V2(cuDevicePrimaryCtxRelease),
    ENTRY_V2(cuDevicePrimaryCtxSetFlags), ENTRY(cuCtxSetCurrent), ENTRY(cuCtxSynchronize), ENTRY(cuCtxSetLimit),
    ENTRY(cuCtxEnablePeerAccess), ENTRY(cuDeviceCanAccessPeer), ENTRY_V2(cuMemAlloc), ENTRY_V2(cuMemFree), ENTRY_V2(cuMemcpyHtoD),
    ENTRY_V2(cuMemGetInfo), ENTRY(cuFuncGetAttribute), ENTRY_V2(cuMemcpyDtoH), ENTRY_V2(cuMemcpyDtoD), ENTRY(cuMemcpyPeer), ENTRY_V2(cuMemsetD32), ENTRY(cuMemHostAlloc),
    ENTRY(cuMemFreeHost), ENTRY(cuModuleLoadData), ENTRY(cuModuleUnload), ENTRY(cuModuleGetFunction), ENTRY(cuFuncSetAttribute),
    ENTRY(cuLaunchKernel), ENTRY(cuGetErrorName), ENTRY(cuGetErrorString), ENTRY_V2(cuGetProcAddress),
};
int cuGetProcAddress_v2(const char *symbol, void **pointer, int version, uint64_t flags, int *status)
{
    (void)version; (void)flags;
    *pointer = NULL;
    for (size_t index = 0; index < sizeof ENTRIES / sizeof *ENTRIES; index++)
        if (!strcmp(ENTRIES[index].name, symbol))
            *pointer = ENTRIES[index].entry;
    if (status)
        *status = *pointer ? 0 : 1;
    return *pointer ? OK : NOT_FOUND;
}
int cuGetProcAddress(const char *symbol, void **pointer, int version, uint64_t flags) { return cuGetProcAddress_v2(symbol, pointer, version, flags, NULL); }
