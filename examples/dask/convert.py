"""A convert on a Dask cluster: python convert.py SCHEDULER SOURCE STORE.

SCHEDULER is an address, such as tcp://host:8786; a cluster of dask-jobqueue, dask-kubernetes or
Coiled has it as `cluster.scheduler_address`. Workers send one number per unit of 1,024 records.
"""

import sys

from distributed import Client

from ecgfast.convert import convert


def main(scheduler: str, source: str, store: str) -> None:
    """Convert with the workers of a cluster that is running."""
    with Client(scheduler) as client:
        # pure=False: a unit is done for its files, and two are never the same call.
        print(convert([source], store, executor=client.get_executor(pure=False, retries=3)))


if __name__ == "__main__":
    main(*sys.argv[1:])
