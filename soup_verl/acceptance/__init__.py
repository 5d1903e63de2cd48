"""What a GPU does differently from a CPU, checked in minutes on whatever is installed beside torch and transformers.

    installed   what is installed, and the driver
    attention   flash-attn against sdpa: log-probs
    update      SOUP's objective and its gradient in bfloat16 against float32 on the CPU
    weights     policies kept, held and given back with FSDP1 and FSDP2
    stack       three steps on verl, vLLM and Ray, prefixes by lookahead and by snapshot

`scripts/gpu_acceptance.sh` runs it all. Only `stack` needs verl, vLLM and Ray; it is skipped without them.
"""
