"""ExecuTorch programs: a stack as graphs of a step and a pass, rewritten, lowered, linked."""
