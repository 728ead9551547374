"""Writes as many numbers as the pipeline's parameter `count` says."""
import os

with open("numbers.txt", "w") as out:
    for number in range(1, int(os.environ["count"]) + 1):
        print(number, file=out)
print("run", os.environ["ELYRA_RUN_NAME"])
