"""Processes of one command as threads, with nothing in common but the disk."""

import threading


def by_ranks(count, one):
    """What `one(rank)` returns for each of `count` ranks that run at once."""
    results: list = [None] * count

    def kept(rank):
        results[rank] = one(rank)

    threads = [threading.Thread(target=kept, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(results), "a process has failed, or waits for ever"
    return [evaluation for evaluation, _ in results]
