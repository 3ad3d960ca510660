// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reads an emulated host's TSC between two readings of the TSC of the machine that emulates it.
 *
 * usage: tsc-echo answer FILE       in the emulated host: read the TSC whenever asked, until GO is asked
 *        tsc-echo ask FILE COUNT    on the machine: print COUNT lines BEFORE TSC AFTER, where BEFORE and
 *                                   AFTER are the machine's TSC; status 1 if there is no answer
 *
 * FILE is a page that both share: the file behind QEMU's ivshmem-plain device on the machine,
 * the device's second BAR in the emulated host. `tools/vm/host pair` builds this and runs it.
 */

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define SIZE 4096
#define GO UINT64_MAX
#define PATIENCE_S 30

struct page {
	uint64_t question;	/* counts up; GO ends it */
	uint64_t answered;	/* the question that `tsc` answers */
	uint64_t tsc;
};

static uint64_t rdtsc_ordered(void)
{
	uint64_t tsc;

	_mm_mfence();
	_mm_lfence();
	tsc = __rdtsc();
	_mm_lfence();
	return tsc;
}

static uint64_t load(const uint64_t *at)
{
	return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}

static void store(uint64_t *at, uint64_t value)
{
	__atomic_store_n(at, value, __ATOMIC_SEQ_CST);
}

/*
 * TCG's fences order memory, but not QEMU's RDTSC: the machine's CPU has been seen to read the
 * TSC 500 ticks before it had the question. It cannot be this many instructions ahead.
 */
static void keep_behind(void)
{
	for (int i = 0; i < 300; i++)
		__asm__ volatile("" : : : "memory");
}

static int answer(struct page *page)
{
	uint64_t question, last = load(&page->answered);
	int idle = 0;

	while ((question = load(&page->question)) != GO) {
		if (question == last) {
			/* Spin while questions come, but leave a host that waits alone. */
			if (++idle > 10000)
				usleep(20000);
			continue;
		}
		keep_behind();
		store(&page->tsc, rdtsc_ordered());
		store(&page->answered, question);
		last = question;
		idle = 0;
	}
	return 0;
}

static int ask(struct page *page, int count)
{
	uint64_t question = load(&page->answered);
	uint64_t before, after;

	while (count--) {
		time_t end = time(NULL) + PATIENCE_S;

		before = rdtsc_ordered();
		store(&page->question, ++question);
		while (load(&page->answered) != question) {
			if (time(NULL) > end)
				errx(1, "no answer within %d s", PATIENCE_S);
		}
		after = rdtsc_ordered();
		printf("%ju %ju %ju\n", (uintmax_t)before, (uintmax_t)load(&page->tsc), (uintmax_t)after);
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct page *page;
	int fd;

	if (argc < 3)
		errx(2, "usage: tsc-echo answer FILE | ask FILE COUNT");
	fd = open(argv[2], O_RDWR);
	if (fd < 0)
		err(1, "%s", argv[2]);
	page = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		err(1, "mmap %s", argv[2]);
	if (!strcmp(argv[1], "answer"))
		return answer(page);
	if (!strcmp(argv[1], "ask") && argc == 4)
		return ask(page, atoi(argv[3]));
	errx(2, "no command '%s' of so many arguments", argv[1]);
}
