"""The machine: devices, versions of driver and CANN, npu-smi, signals, msrun, cores, files that are replaced whole."""
