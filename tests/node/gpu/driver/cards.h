/* The machine that the stand-in libraries show: a folder (FAKE_GPUS) with one file of `key value` lines a card: 0.card, 1.card, ...
 *
 * Its memory is N.vram beside it, so that what one process leaves there another finds, as on a card whose driver does not scrub. Who
 * holds which 64 KiB page of it stands in N.owner (a process id a page); pages of processes that are gone are free. N.ran lists the
 * processes that ever held a context.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 65536u
#define MOST_CARDS 16
#define TEXT 256

static const char *folder(void) { const char *place = getenv("FAKE_GPUS"); return place ? place : "/nonexistent"; }

static const char *path_of(int card, const char *kind)
{
    static __thread char path[512];
    snprintf(path, sizeof path, "%s/%d.%s", folder(), card, kind);
    return path;
}

static int cards(void)
{
    int count = 0;
    while (count < MOST_CARDS && access(path_of(count, "card"), R_OK) == 0)
        count++;
    return count;
}

/* The rest of the line after `key `, or NULL where the card does not say. */
static const char *say(int card, const char *key)
{
    static __thread char value[4][TEXT];
    static __thread int turn;
    char line[TEXT];
    FILE *file = fopen(path_of(card, "card"), "r");
    const char *found = NULL;
    size_t length = strlen(key);
    if (!file)
        return NULL;
    while (!found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, key, length) == 0 && line[length] == ' ') {
            turn = (turn + 1) % 4;
            strcpy(value[turn], line + length + 1);
            found = value[turn];
        }
    }
    fclose(file);
    return found;
}

static uint64_t number(int card, const char *key, uint64_t otherwise)
{
    const char *text = say(card, key);
    return text ? strtoull(text, NULL, 0) : otherwise;
}

/* The owners' table, mapped and locked; `pages` is set. Give it back with `unlock`. */
typedef struct { int fd; int32_t *owner; size_t pages; } Table;

static Table lock(int card)
{
    Table table;
    table.pages = (size_t)((number(card, "memory", 0) - number(card, "reserved", 0)) / PAGE);
    table.fd = open(path_of(card, "owner"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    flock(table.fd, LOCK_EX);
    if (ftruncate(table.fd, (off_t)(table.pages * 4)) != 0)
        abort();
    table.owner = mmap(NULL, table.pages * 4, PROT_READ | PROT_WRITE, MAP_SHARED, table.fd, 0);
    return table;
}

static void unlock(Table table)
{
    munmap(table.owner, table.pages * 4);
    close(table.fd);
}

static int gone(int32_t pid) { return pid == 0 || kill(pid, 0) != 0; }
