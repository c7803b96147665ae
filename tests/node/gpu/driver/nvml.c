/* A stand-in for libnvidia-ml.so.1: answers what FAKE_GPUS says, with NVML's own structures and codes. What a card file does not name
 * is "not supported", as on cards that lack it. */
#include "cards.h"

#define OK 0
#define INVALID 2
#define UNSUPPORTED 3
#define NOT_FOUND 6
#define TOO_SMALL 7
#define NO_DRIVER 9
#define MIG_BASE 1000

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute; } Process;
typedef struct { unsigned units, copy, decoder, encoder, jpeg, ofa, slices, compute_slices; unsigned long long megabytes; } Attributes;
typedef struct { unsigned environment, feature, tools; } ConfCompute;

/* A handle is the card's number + 1; of a MIG device MIG_BASE + 16 * card + instance. */
static int card_of(void *handle)
{
    long number = (long)handle;
    return number >= MIG_BASE ? (int)((number - MIG_BASE) / 16) : (int)number - 1;
}
static int instance_of(void *handle) { long number = (long)handle; return number >= MIG_BASE ? (int)((number - MIG_BASE) % 16) : -1; }
static const char *of_instance(void *handle, const char *what)
{
    static __thread char key[64];
    if (instance_of(handle) < 0)
        return what;
    snprintf(key, sizeof key, "mig%d-%s", instance_of(handle), what);
    return key;
}

static int text(void *handle, const char *key, char *out, unsigned length)
{
    const char *value = say(card_of(handle), of_instance(handle, key));
    if (!value)
        return UNSUPPORTED;
    if (strlen(value) + 1 > length)
        return TOO_SMALL;
    strcpy(out, value);
    return OK;
}

static int count(void *handle, const char *key, unsigned *out)
{
    if (!say(card_of(handle), of_instance(handle, key)))
        return UNSUPPORTED;
    *out = (unsigned)number(card_of(handle), of_instance(handle, key), 0);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return getenv("FAKE_GPUS") ? OK : NO_DRIVER; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code)
{
    return code == UNSUPPORTED ? "Not Supported" : code == NO_DRIVER ? "Driver Not Loaded" : code == NOT_FOUND ? "Not Found" : "An error";
}
int nvmlSystemGetDriverVersion(char *out, unsigned length) { return text((void *)1, "driver", out, length); }
int nvmlSystemGetConfComputeState(ConfCompute *out)
{
    unsigned feature;
    int code = count((void *)1, "conf-compute", &feature);
    if (code == OK)
        *out = (ConfCompute){feature, feature, 0};
    return code;
}
int nvmlDeviceGetCount_v2(unsigned *out) { *out = (unsigned)cards(); return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out)
{
    if (index >= (unsigned)cards())
        return INVALID;
    if (say((int)index, "fails"))
        return (int)number((int)index, "fails", 15); /* 15: the GPU is lost */
    *out = (void *)(long)(index + 1);
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *out) { return count(handle, "mig-most", out); }
int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *pending)
{
    int code = count(handle, "mig", now);
    *pending = *now;
    return code;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **out)
{
    *out = (void *)(long)(MIG_BASE + 16 * card_of(handle) + index);
    return say(card_of(handle), of_instance(*out, "uuid")) ? OK : NOT_FOUND;
}
int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *out) { return count(handle, "instance", out); }
int nvmlDeviceGetComputeInstanceId(void *handle, unsigned *out) { return count(handle, "compute-instance", out); }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out)
{
    for (int card = 0; card < cards(); card++) {
        const char *whole = say(card, "uuid");
        if (whole && strcmp(whole, uuid) == 0) {
            *out = (void *)(long)(card + 1);
            return OK;
        }
        for (int instance = 0; instance < 8; instance++) {
            void *handle = (void *)(long)(MIG_BASE + 16 * card + instance);
            const char *part = say(card, of_instance(handle, "uuid"));
            if (part && strcmp(part, uuid) == 0) {
                *out = handle;
                return OK;
            }
        }
    }
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(void *handle, char *out, unsigned length) { return text(handle, "uuid", out, length); }
int nvmlDeviceGetName(void *handle, char *out, unsigned length) { return text(handle, "name", out, length); }
int nvmlDeviceGetVbiosVersion(void *handle, char *out, unsigned length) { return text(handle, "vbios", out, length); }
int nvmlDeviceGetSerial(void *handle, char *out, unsigned length) { return text(handle, "serial", out, length); }
int nvmlDeviceGetMinorNumber(void *handle, unsigned *out) { return count(handle, "minor", out); }
int nvmlDeviceGetCurrPcieLinkGeneration(void *handle, unsigned *out) { return count(handle, "pcie-generation", out); }
int nvmlDeviceGetMaxPcieLinkGeneration(void *handle, unsigned *out) { return count(handle, "pcie-generation-most", out); }
int nvmlDeviceGetCurrPcieLinkWidth(void *handle, unsigned *out) { return count(handle, "pcie-width", out); }
int nvmlDeviceGetMaxPcieLinkWidth(void *handle, unsigned *out) { return count(handle, "pcie-width-most", out); }
int nvmlDeviceGetPowerUsage(void *handle, unsigned *out) { return count(handle, "power", out); }
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *out) { return count(handle, "power-limit", out); }
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *out) { (void)sensor; return count(handle, "temperature", out); }
int nvmlDeviceGetTemperatureThreshold(void *handle, int kind, unsigned *out)
{
    return kind == 1 ? count(handle, "temperature-slowdown", out) : UNSUPPORTED;
}
int nvmlDeviceGetEccMode(void *handle, unsigned *now, unsigned *pending)
{
    int code = count(handle, "ecc", now);
    *pending = *now;
    return code;
}
int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *out)
{
    const char *key = kind == 1 ? (counter == 1 ? "ecc-uncorrected" : "ecc-uncorrected-now")
                                : (counter == 1 ? "ecc-corrected" : "ecc-corrected-now");
    if (!say(card_of(handle), key))
        return UNSUPPORTED;
    *out = number(card_of(handle), key, 0);
    return OK;
}
int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed)
{
    const char *value = say(card_of(handle), "remapped-rows");
    if (!value)
        return UNSUPPORTED;
    return sscanf(value, "%u %u %u %u", corrected, uncorrected, pending, failed) == 4 ? OK : INVALID;
}
int nvmlDeviceGetRetiredPages_v2(void *handle, int cause, unsigned *length, unsigned long long *pages, unsigned long long *times)
{
    unsigned found;
    int code = count(handle, cause == 0 ? "retired-single" : "retired-double", &found);
    if (code != OK)
        return code;
    if (!pages) {
        *length = found;
        return found ? TOO_SMALL : OK;
    }
    *length = found;
    for (unsigned page = 0; page < found; page++)
        pages[page] = page, times[page] = 0;
    return OK;
}
int nvmlDeviceGetRetiredPages(void *handle, int cause, unsigned *length, unsigned long long *pages)
{
    unsigned long long times[64];
    return nvmlDeviceGetRetiredPages_v2(handle, cause, length, pages, times);
}
int nvmlDeviceGetRetiredPagesPendingStatus(void *handle, unsigned *out) { return count(handle, "retired-pending", out); }
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *out)
{
    if (!say(card_of(handle), "throttle"))
        return UNSUPPORTED;
    *out = number(card_of(handle), "throttle", 0);
    return OK;
}
int nvmlDeviceGetNvLinkState(void *handle, unsigned link, unsigned *out)
{
    unsigned links;
    if (count(handle, "nvlinks", &links) != OK || link >= links)
        return UNSUPPORTED;
    *out = 1;
    return OK;
}
int nvmlDeviceValidateInforom(void *handle) { return say(card_of(handle), "inforom") ? (int)number(card_of(handle), "inforom", 0) : UNSUPPORTED; }
int nvmlDeviceGetMemoryInfo(void *handle, Memory *out)
{
    out->total = number(card_of(handle), of_instance(handle, "memory"), 0);
    out->used = 0;
    out->free = out->total;
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(void *handle, Memory2 *out)
{
    if (out->version != 0x02000028)
        return 25; /* the versions of the structure do not match */
    out->total = number(card_of(handle), of_instance(handle, "memory"), 0);
    out->reserved = number(card_of(handle), of_instance(handle, "reserved"), 0);
    out->used = 0;
    out->free = out->total - out->reserved;
    return OK;
}
int nvmlDeviceGetPciInfo_v3(void *handle, Pci *out)
{
    int card = card_of(handle);
    memset(out, 0, sizeof *out);
    if (!say(card, "pci"))
        return UNSUPPORTED;
    strncpy(out->bus_id, say(card, "pci"), sizeof out->bus_id - 1);
    out->id = (unsigned)number(card, "pci-id", 0);
    out->subsystem = (unsigned)number(card, "pci-subsystem", 0);
    return OK;
}
int nvmlDeviceGetAttributes_v2(void *handle, Attributes *out)
{
    if (instance_of(handle) < 0)
        return UNSUPPORTED;
    memset(out, 0, sizeof *out);
    out->slices = (unsigned)number(card_of(handle), of_instance(handle, "slices"), 1);
    out->megabytes = number(card_of(handle), of_instance(handle, "memory"), 0) >> 20;
    return OK;
}

/* Who holds pages of the card now, or is named by the card's own `held` (a process of somebody else). */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *length, Process *out)
{
    int card = card_of(handle);
    unsigned found = 0, room = *length;
    if (say(card, "processes-unknown"))
        return UNSUPPORTED;
    Table table = lock(card);
    int32_t seen[64];
    for (size_t page = 0; page < table.pages; page++) {
        int32_t pid = table.owner[page];
        int known = gone(pid) || pid == getpid();
        for (unsigned other = 0; other < found && !known; other++)
            known = seen[other] == pid;
        if (!known && found < 64)
            seen[found++] = pid;
    }
    unlock(table);
    if (say(card, "held"))
        seen[found++] = (int32_t)number(card, "held", 1);
    *length = found;
    if (found == 0)
        return OK;
    if (!out || room < found)
        return TOO_SMALL;
    for (unsigned index = 0; index < found; index++)
        out[index] = (Process){(unsigned)seen[index], 0, 0xffffffff, 0xffffffff};
    return OK;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *length, Process *out)
{
    int card = card_of(handle);
    unsigned room = *length;
    *length = say(card, "shown-by") ? 1 : 0;
    if (*length == 0)
        return OK;
    if (!out || room < 1)
        return TOO_SMALL;
    out[0] = (Process){(unsigned)number(card, "shown-by", 1), 0, 0xffffffff, 0xffffffff};
    return OK;
}

/* Accounting: the driver's own list of the processes that used the card. */
int nvmlDeviceGetAccountingMode(void *handle, unsigned *out)
{
    /* What was set is kept beside the card, as the driver keeps it until it is unloaded. */
    FILE *file = fopen(path_of(card_of(handle), "accounting"), "r");
    int code = count(handle, "accounting", out);
    if (file) {
        if (code == OK && fscanf(file, "%u", out) != 1)
            code = INVALID;
        fclose(file);
    }
    return code;
}
int nvmlDeviceSetAccountingMode(void *handle, unsigned mode)
{
    unsigned now;
    FILE *file;
    if (count(handle, "accounting", &now) != OK)
        return UNSUPPORTED;
    file = fopen(path_of(card_of(handle), "accounting"), "w");
    if (!file)
        return INVALID;
    fprintf(file, "%u", mode);
    fclose(file);
    return OK;
}
int nvmlDeviceGetAccountingBufferSize(void *handle, unsigned *out) { (void)handle; *out = 4000; return OK; }
int nvmlDeviceGetAccountingPids(void *handle, unsigned *length, unsigned *out)
{
    unsigned found = 0;
    FILE *file = fopen(path_of(card_of(handle), "ran"), "r");
    while (file && found < *length && fscanf(file, "%u", &out[found]) == 1)
        found++;
    if (file)
        fclose(file);
    *length = found;
    return OK;
}
