"""What is on disk. Nothing here needs torch.

StoreHeader (header) --store--> Store --round--> Round: blocks are written, then marked complete
layout: Zarr arrays, chunks, codecs      shards, quantization: how they are read fast and kept small
keys: who a sample is      labelsets: labels added later      remote, objects, disk: where it all lies
summary: what `lenscache info` shows      verify/: is it whole      views/: xarray, selections, exports
"""
