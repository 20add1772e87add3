"""The machine: device choice, versions of driver and CANN, npu-smi, signals, msrun, files that are replaced whole."""
