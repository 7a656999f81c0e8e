"""aiter's kernels behind the contract's ops: what each needs, and what is not used and why.

Every convention of aiter that an adapter relies on is a line of `conventions.json`, with file and line of the
commit that was read; every entry point's signature is in `signatures.json`. Nothing here imports aiter but
`entries.load`.
"""
