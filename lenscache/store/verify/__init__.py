"""Is a store whole, and does it hold what its plan says?

store --round-----> marks, checksums, shapes, values
      --contents--> texts, labels and keys
      --verify----> findings of both
repair: unmarks damaged blocks, so that the next extraction writes them again
"""
