"""What is on disk. Nothing here needs torch.

StoreHeader (header) --store--> Store --round--> Round: blocks are written, then marked complete

layout: Zarr arrays, chunks, codecs     shards, quantization: reading them fast, keeping them small
keys: the identity of a sample          labelsets: labels added later
remote, objects, disk: where it lies    summary: what `lenscache info` shows
verify/: is it whole                    views/: xarray, selections, exports
"""
