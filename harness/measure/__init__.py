"""Figures without hardware: whole boots of a machine that counts instructions, compared in pairs."""
