"""Where weights come from: the Hugging Face hub and folders, safetensors files to parameters, NF4. Graphs to keep."""
